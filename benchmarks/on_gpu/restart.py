"""Train, be killed, resume: does the resumed run end as an undisturbed one? And do two undisturbed ones end alike?

    python -m on_gpu.restart REQUEST.json ANSWER.json      (run by first_minutes.py, with benchmarks/ as the folder)

On a GPU the second question comes first: kernels that add up with atomics give other last digits in every run, and then
a resumed run cannot have the same bytes either. The request's ``role``:

    undisturbed   trains twice from the start, in two folders
    killed        kills itself with SIGKILL in a step after the second checkpoint; there is no answer
    resumed       continues from the newest checkpoint of ``killed``
"""

from __future__ import annotations

import json
import os
import signal
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from transformers import PrinterCallback, TrainerCallback

from oddsmith import ORPOConfig, ORPOTrainer

from .works import LORA, complete, make_model, make_tokenizer

STEPS, SAVED_EACH, KILLED_IN = 8, 2, 6
PAIRS = 4  # a step, in two accumulation steps


class Kill(TrainerCallback):
    """Kill the process in the middle of a step, counted from 1."""

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == KILLED_IN:
            os.kill(os.getpid(), signal.SIGKILL)


def trainer_of(request: dict[str, Any], folder: Path, callbacks: list[TrainerCallback]) -> ORPOTrainer:
    """Return the trainer of a run: LoRA with dropout on its branch off, a few checkpoints, an evaluation of 4 pairs."""
    shape = request["small_shape"]
    rows = request["rows"]
    settings = ORPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=PAIRS // 2,
        gradient_accumulation_steps=2,
        max_tokens_per_microbatch=None,
        max_steps=STEPS,
        max_length=request["max_length"],
        learning_rate=request["learning_rate"],
        seed=request["seed"],
        bf16=request["bf16"],
        use_cpu=request["device"] == "cpu",
        save_strategy="steps",
        save_steps=SAVED_EACH,
        save_total_limit=2,
        eval_strategy="steps",
        eval_steps=4,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = ORPOTrainer(
        make_model(shape, weights=request["weights"], device=request["device"], seed=request["seed"]),
        settings,
        train_dataset=Dataset.from_list(rows[:-4]),
        eval_dataset=Dataset.from_list(rows[-4:]),
        processing_class=make_tokenizer(shape["vocab_size"]),
        peft_config=LoraConfig(**LORA),
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def outcome(trainer: ORPOTrainer, folder: Path) -> dict[str, Any]:
    """Return what a finished run left: losses by step, the layout, and a digest of every file of tensors."""
    trainer.save_model()
    newest = folder / f"checkpoint-{STEPS}"
    files = sorted([*folder.glob("*.safetensors"), *newest.glob("*.safetensors")])
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "layout": trainer.path.name,
        "loss": {str(entry["step"]): entry["loss"] for entry in logs},
        "files": {str(file.relative_to(folder)): sha256(file.read_bytes()).hexdigest() for file in files},
    }


def run(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Play the request's role under its ``folder``; return the outcome of each run."""
    base, role = Path(request["folder"]), request["role"]
    if role == "undisturbed":
        outcomes = []
        for name in ("first", "second"):
            trainer = trainer_of(request, base / name, [])
            trainer.train()
            outcomes.append(outcome(trainer, base / name))
        return outcomes
    trainer = trainer_of(request, base / "killed", [Kill()] if role == "killed" else [])
    trainer.train(resume_from_checkpoint=role == "resumed")
    return [outcome(trainer, base / "killed")]


def main(request_file: str, answer_file: str) -> None:
    """Read the request, run, write the outcomes."""
    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    request = complete(request | {"steps": 4, "pairs": 5})
    Path(answer_file).write_text(json.dumps({"runs": run(request)}), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
