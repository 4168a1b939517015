"""Train the same steps in one process or as one of several, and write the losses: they must not differ.

    python -m on_gpu.processes REQUEST.json ANSWER.json      (run by first_minutes.py, with benchmarks/ as the folder)

Several processes find each other by RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, as under ``torchrun``.
NCCL refuses two processes on one card ("Duplicate GPU detected"); gloo exchanges the gradients of CUDA tensors through
the host, which is enough to see that the numbers are the same. With a card for each process NCCL is used. A process
takes the card of its LOCAL_RANK: on one card it is 0 for both, as if they were on two machines.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import PrinterCallback

from oddsmith import ORPOConfig, ORPOTrainer

from .works import LORA, complete, make_model, make_tokenizer

STEPS, PAIRS = 4, 4


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Train in float32; return ``loss`` and ``grad_norm`` of each step, ``layout``, ``backend`` and ``step_s``."""
    several = int(os.environ.get("WORLD_SIZE", "1"))
    cuda = request["device"] == "cuda"
    backend = "nccl" if cuda and torch.cuda.device_count() >= several else "gloo"
    shape = request["small_shape"]
    model = make_model(shape, weights="bfloat16", device="cpu", seed=request["seed"]).float()
    with tempfile.TemporaryDirectory() as folder:
        settings = ORPOConfig(
            output_dir=folder,
            per_device_train_batch_size=PAIRS // several,
            max_steps=STEPS,
            max_length=request["max_length"],
            learning_rate=request["learning_rate"],
            seed=request["seed"],
            bf16=False,
            tf32=False if cuda else None,
            use_cpu=not cuda,
            ddp_backend=backend if several > 1 else None,
            dataloader_pin_memory=cuda,
            save_strategy="no",
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
        )
        trainer = ORPOTrainer(
            model,
            settings,
            train_dataset=Dataset.from_list(request["rows"]),
            processing_class=make_tokenizer(shape["vocab_size"]),
            peft_config=LoraConfig(**LORA),
        )
        trainer.remove_callback(PrinterCallback)
        started_s = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started_s
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
        answer = {
            "processes": trainer.accelerator.num_processes,
            "device": str(trainer.accelerator.device),
            "backend": backend if several > 1 else None,
            "cards": torch.cuda.device_count() if cuda else 0,
            "layout": trainer.path.name,
            "step_s": seconds / STEPS,
            "loss": [entry["loss"] for entry in logs],
            "grad_norm": [entry["grad_norm"] for entry in logs],
        }
        if several > 1:
            trainer.accelerator.wait_for_everyone()
            trainer.accelerator.state.destroy_process_group()
    return answer


def main(request_file: str, answer_file: str) -> None:
    """Read the request, run, and, as the first of the processes, write."""
    request = complete(json.loads(Path(request_file).read_text(encoding="utf-8")) | {"steps": STEPS, "pairs": PAIRS})
    answer = run(request)
    if os.environ.get("RANK", "0") == "0":
        Path(answer_file).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
