"""ORPO beside what else could be done with the same pairs: fine-tuning, fine-tuning and then DPO, and TRL's own ORPO.

    python -m benchmarks.evidence.alternatives --data FOLDER --work FOLDER [--set NAME]

All methods see the same number of pairs, in batches of the same size, with the same adapter, learning rate schedule and
precision. Fine-tuning and DPO are TRL's; "then" gives each of the two half of the steps. Log-probabilities of the
held-out answers are computed for all methods by one plain loop (``log_probabilities``) and by no trainer's code.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .lab import MODEL, apart, bootstrap, kept, read_rows
from .measure import figures
from .preferences import files_of
from .sets import SETS

QUESTION = "alternatives"
SEEDS = (1, 2, 3)
PAIRS, STEPS, LONGEST = 4, 24, 384  # pairs a step, steps, tokens of a sequence
METHODS = ("none", "fine-tuning", "fine-tuning, then DPO", "ORPO", "TRL's ORPO")
RATES = {"fine-tuning": 2e-4, "DPO": 5e-5, "ORPO": 2e-4}
BETAS = {"DPO": 0.1, "ORPO": 1.0}


def log_probabilities(model: Any, tokenizer: Any, rows: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Return the mean log-probability of each answer's tokens, nats, one sequence after the other.

    The answer's tokens are those that the chat template puts behind the rendered prompt, up to ``LONGEST`` in all.
    """
    import torch

    found: dict[str, list[float]] = {"chosen": [], "rejected": []}
    for row in rows:
        options = {"tokenize": True, "return_dict": False}
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, **options)
        for side, values in found.items():
            ids = tokenizer.apply_chat_template([*row["prompt"], *row[side]], **options)[:LONGEST]
            with torch.no_grad():
                logits_TV = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, len(prompt) - 1 : -1]
            logps_TV = logits_TV.float().log_softmax(-1)
            values.append(logps_TV.gather(1, torch.tensor(ids[len(prompt) :])[:, None]).mean().item())
    return found


def trained(spec: dict[str, Any]) -> dict[str, Any]:
    """Train by a method and measure, in a process of its own."""
    return apart("alternatives", spec)


def _trained(method: str, train: str, test: str, seed: int, steps: int = STEPS) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM

    from benchmarks.versus.worker import resident_bytes
    from oddsmith.model.loading.models import load_tokenizer
    from oddsmith.model.loading.place import locate

    rows = usable(read_rows(Path(train)), load_tokenizer(MODEL))[: PAIRS * steps]
    tokenizer = load_tokenizer(MODEL)
    model = AutoModelForCausalLM.from_pretrained(locate(MODEL), dtype=torch.bfloat16)
    seconds, done = 0.0, 0
    parts = {"none": (), "fine-tuning, then DPO": ("fine-tuning", "DPO")}.get(method, (method,))
    with tempfile.TemporaryDirectory() as folder:
        for number, part in enumerate(parts):
            share = rows[number * len(rows) // len(parts) : (number + 1) * len(rows) // len(parts)]
            trainer = _trainer(part, model, tokenizer, share, f"{folder}/{number}", seed)
            start = time.perf_counter()
            trainer.train()
            seconds += time.perf_counter() - start
            done += trainer.state.global_step
            model = trainer.model.merge_and_unload()
        peak = resident_bytes("VmHWM") / 2**30
    model.eval()
    pairs = log_probabilities(model, tokenizer, usable(read_rows(Path(test)), tokenizer))
    return {"method": method, "seed": seed, "steps": done, "pairs": pairs, "training_s": seconds, "peak_gib": peak}


def _trainer(part: str, model: Any, tokenizer: Any, rows: list[dict[str, Any]], folder: str, seed: int) -> Any:
    from datasets import Dataset
    from peft import LoraConfig

    kind = part.removeprefix("TRL's ")
    settings: dict[str, Any] = {
        "output_dir": folder, "per_device_train_batch_size": PAIRS, "num_train_epochs": 1, "max_length": LONGEST,
        "learning_rate": RATES[kind], "lr_scheduler_type": "cosine", "warmup_steps": 2, "seed": seed, "bf16": True,
        "use_cpu": True, "logging_steps": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
        "gradient_checkpointing": False, "dataloader_pin_memory": False,
    }  # fmt: skip
    if kind in BETAS:
        settings["beta"] = BETAS[kind]
    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    if part == "ORPO":
        from oddsmith import ORPOConfig as Config
        from oddsmith import ORPOTrainer as Trainer
    elif part == "TRL's ORPO":
        from trl.experimental.orpo import ORPOConfig as Config
        from trl.experimental.orpo import ORPOTrainer as Trainer
    elif part == "DPO":
        from trl import DPOConfig as Config
        from trl import DPOTrainer as Trainer
    else:
        from trl import SFTConfig as Config
        from trl import SFTTrainer as Trainer

        rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
        settings["completion_only_loss"] = True
    return Trainer(
        model,
        args=Config(**settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora,
    )


def usable(rows: list[dict[str, Any]], tokenizer: Any) -> list[dict[str, Any]]:
    """Return the rows whose sequences all fit in ``LONGEST`` tokens: each trainer cuts longer ones in its own way."""

    def longest(row: dict[str, Any]) -> int:
        sides = ([*row["prompt"], *row[side]] for side in ("chosen", "rejected"))
        return max(len(tokenizer.apply_chat_template(side, tokenize=True, return_dict=False)) for side in sides)

    return [row for row in rows if longest(row) <= LONGEST]


def report(found: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """Yield the table."""
    yield "| method | accuracy | log-odds | NLL of chosen, nats a token | seconds of training | peak memory, GiB |"
    yield "|---|---|---|---|--:|--:|"
    for method, results in found.items():
        measures = [_figures(one) for one in results]
        cells = [
            bootstrap(np.stack([one[name] for one in measures])).text(digits, scale)
            for name, digits, scale in (("accuracy", 1, 100), ("log_odds", 3, 1), ("nll", 3, 1))
        ]
        seconds = np.mean([one["training_s"] for one in results])
        peak = np.max([one["peak_gib"] for one in results])
        yield f"| {method} | {' | '.join(cells)} | {seconds:.0f} | {peak:.2f} |"


def _figures(result: dict[str, Any]) -> dict[str, np.ndarray]:
    nll = [-one for one in result["pairs"]["chosen"]]
    return figures({"pairs": {**result["pairs"], "nll": nll}})


def main() -> None:
    """Make the runs that are missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--set", choices=SETS, default="hh_helpful_rejection_sampled")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--apart")
    given = parser.parse_args()
    if given.apart:
        found = _trained(**json.loads(given.apart))
        if not math.isfinite(sum(found["pairs"]["chosen"])):
            raise SystemExit("some log-probabilities are not finite")
        print(json.dumps(found))
        return
    _, files = files_of(given.set, given.data, given.work)
    results: dict[str, list[dict[str, Any]]] = {}
    for method in given.methods:
        for seed in SEEDS if method != "none" else (0,):
            spec = {"method": method, "train": str(files["train"]), "test": str(files["test"]), "seed": seed}
            label = f"{given.set}-{method.lower().replace(' ', '-').replace(',', '')}-seed-{seed}".replace("'", "")
            results.setdefault(method, []).append(kept(QUESTION, label, lambda spec=spec: trained(spec)))
    print("\n".join(report(results)))


if __name__ == "__main__":
    main()
