"""One trainer, one run, one process: trains a few steps and writes what it measured.

    python -m versus.worker REQUEST.json ANSWER.json      (run by versus_trl.py, with benchmarks/ as the folder)

All else than ``TRAINERS`` is the same: weights, bf16 autocast where the work asks for it, AdamW with a linear schedule,
SDPA attention.
"""

from __future__ import annotations

import hashlib
import json
import resource
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, TrainerCallback

from oddsmith.model.loading.models import load_tokenizer
from oddsmith.model.loading.place import locate

datasets.disable_progress_bars()
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}

# What each trainer is told beside settings(). Checkpointing is on in TRL and off in Oddsmith unless they are told so.
TRAINERS: dict[str, dict[str, Any]] = {
    "ours": {},
    "trl-default": {},
    "trl-best": {"gradient_checkpointing": False},
    "trl-split": {"gradient_checkpointing": False, "per_device_train_batch_size": 1},
}


class Stopwatch(TrainerCallback):
    """Time from the end of one optimizer step to the end of the next, and the tokens that went into the model."""

    def __init__(self) -> None:
        self.ends_s: list[float] = []
        self.computed_tokens: list[int] = []
        self.before_bytes = 0
        self.cpu_s = 0.0

    def watch(self, model: torch.nn.Module) -> None:
        """Count the tokens that the model's embedding looks up."""
        model.get_input_embeddings().register_forward_pre_hook(self._count)

    def _count(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if self.computed_tokens:
            self.computed_tokens[-1] += inputs[0].numel()

    def _now(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def on_train_begin(self, args, state, control, **kwargs):
        self.before_bytes = resident_bytes("VmRSS")
        self.cpu_s = -time.process_time()
        self.ends_s.append(self._now())

    def on_step_begin(self, args, state, control, **kwargs):
        self.computed_tokens.append(0)

    def on_step_end(self, args, state, control, **kwargs):
        self.ends_s.append(self._now())

    def on_train_end(self, args, state, control, **kwargs):
        self.cpu_s += time.process_time()


def resident_bytes(which: str) -> int:
    """Resident memory of this process: ``"VmRSS"`` now, ``"VmHWM"`` at its peak.

    Linux keeps both for the program that runs now; ``ru_maxrss``, which other systems have to do with, may begin at
    the size of the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        (line,) = [line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith(which)]
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def settings(request: dict[str, Any], output_dir: str) -> dict[str, Any]:
    """What a trainer is told, in the names that both know."""
    cuda = torch.cuda.is_available()
    own = TRAINERS[request["trainer"]]
    return {
        "output_dir": output_dir,
        "per_device_train_batch_size": request["pairs"],
        "gradient_accumulation_steps": request["pairs"] // own.get("per_device_train_batch_size", request["pairs"]),
        "max_steps": request["steps"],
        "max_length": request["max_length"],
        "learning_rate": request["learning_rate"],
        "beta": request["beta"],
        "seed": request["seed"],
        "bf16": request["bf16"],
        "use_cpu": not cuda,
        "dataloader_pin_memory": cuda,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        **own,
    }


def make_trainer(request: dict[str, Any], output_dir: str, stopwatch: Stopwatch) -> Any:
    """The trainer that the request names, over the model, the adapter and the rows that it names."""
    if request["trainer"] == "ours":
        from oddsmith import ORPOConfig, ORPOTrainer
    else:
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer
    dtype = getattr(torch, request["weights"])
    model = AutoModelForCausalLM.from_pretrained(locate(request["model"]), dtype=dtype, attn_implementation="sdpa")
    stopwatch.watch(model)
    rows = json.loads(Path(request["rows"]).read_text(encoding="utf-8"))["rows"]
    return ORPOTrainer(
        model.to("cuda") if torch.cuda.is_available() else model,
        args=ORPOConfig(**settings(request, output_dir)),
        train_dataset=Dataset.from_list(rows),
        processing_class=load_tokenizer(request["model"]),
        peft_config=LoraConfig(**LORA) if request["adapter"] else None,
        callbacks=[stopwatch],
    )


def digest_of_rows(rows: Dataset) -> str:
    """A fingerprint of the tokens, and of where each prompt ends, that a trainer made of its rows."""
    fingerprint = hashlib.sha256()
    for row in rows:
        for side in ("chosen", "rejected"):
            prompt = row.get(f"{side}_prompt_tokens")
            if prompt is None:  # TRL marks the prompt in its labels
                prompt = row[f"{side}_labels"].count(-100)
            fingerprint.update(repr((row[f"{side}_input_ids"], prompt)).encode())
    return fingerprint.hexdigest()


def digest_of_trainable(model: torch.nn.Module) -> str:
    """A fingerprint of the weights that will be trained."""
    fingerprint = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad:
            fingerprint.update(f"{name} {parameter.dtype}".encode())
            fingerprint.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return fingerprint.hexdigest()


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Train and measure.

    Args:
        request: ``trainer``, ``model``, ``weights``, ``rows``, ``adapter``, ``bf16``, ``pairs``, ``steps``,
            ``max_length``, ``learning_rate``, ``beta``, ``seed``.

    Returns:
        Per step: ``step_s``, ``loss``, ``grad_norm``, ``computed_tokens``. Of the run: ``peak_bytes`` (resident, of the
        whole process), ``before_bytes`` (resident, before the first step), ``device_peak_bytes``, ``setup_s``,
        ``cpu_s`` (of all threads, over all steps), ``threads``, and the fingerprints ``tokens``, ``initial_weights``.
    """
    started_s = time.perf_counter()
    stopwatch = Stopwatch()
    with tempfile.TemporaryDirectory() as output_dir:
        trainer = make_trainer(request, output_dir, stopwatch)
        answer = {
            "trainer": request["trainer"],
            "tokens": digest_of_rows(trainer.train_dataset),
            "initial_weights": digest_of_trainable(trainer.model),
            "setup_s": time.perf_counter() - started_s,
        }
        trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    ends_s = stopwatch.ends_s
    return answer | {
        "step_s": [end - start for start, end in pairwise(ends_s)],
        "loss": [entry["loss"] for entry in logs],
        "grad_norm": [entry["grad_norm"] for entry in logs],
        "computed_tokens": stopwatch.computed_tokens,
        "cpu_s": stopwatch.cpu_s,
        "before_bytes": stopwatch.before_bytes,
        "peak_bytes": resident_bytes("VmHWM"),
        "device_peak_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
    }


def main(request_file: str, answer_file: str) -> None:
    """Read the request, run, write the answer."""
    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    Path(answer_file).write_text(json.dumps(run(request)), encoding="utf-8")


if __name__ == "__main__":
    victim = Path("/proc/self/oom_score_adj")
    if victim.is_file():
        victim.write_text("1000", encoding="utf-8")  # where memory runs out, this process is to go, and no other
    main(*sys.argv[1:])
