"""Train a model on pairs and measure it on others, in a process of its own: what most questions rest on.

    result = trained({"train": FILE, "test": FILE, "settings": {...}, "seed": 1})

A result holds, for each held-out pair in the order of the file, the mean log-probability of both answers (nats a token)
and the mean NLL of the chosen one, so every figure and interval can be computed again from it.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from .facts import facts_kept, text_perplexity
from .lab import MODEL, apart, flags_of, oddsmith

# The settings of all runs unless a question says otherwise.
SETTINGS: dict[str, Any] = {
    "model_name_or_path": MODEL,
    "use_peft": True,
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.0,
    "max_length": 512,
    "bad_rows": "drop",
    "learning_rate": 2e-4,
    "beta": 0.25,
    "per_device_train_batch_size": 8,
    "num_train_epochs": 1,
    "warmup_steps": 0.1,  # of all steps
    "lr_scheduler_type": "cosine",
    "logging_steps": 1,
    "save_strategy": "no",
}


def trained(spec: dict[str, Any]) -> dict[str, Any]:
    """Train as a specification says; return what was measured, in a process of its own.

    Args:
        spec: ``train`` and ``test`` (files), ``settings`` (beside ``SETTINGS``), ``seed``; ``curve`` (evaluate every so
            many steps), ``general`` (measure a general text and facts, too), ``train`` may be null: only measure.

    Returns:
        ``pairs`` (lists ``chosen``, ``rejected``, ``nll``), ``metrics`` of the last evaluation, ``history`` of the
        training, ``evaluations`` of the curve, ``verdict`` of the diagnosis, ``seconds`` and ``peak_gib``.
    """
    return apart("measure", spec)


def figures(result: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return figures of each pair: whether it is told apart, the log-odds and margin (nats a token), the NLL."""
    chosen_P, rejected_P = (np.asarray(result["pairs"][side]) for side in ("chosen", "rejected"))

    def log_odds(logps_P: np.ndarray) -> np.ndarray:
        return logps_P - np.log(-np.expm1(logps_P))

    return {
        "accuracy": (chosen_P > rejected_P).astype(float),
        "log_odds": log_odds(chosen_P) - log_odds(rejected_P),
        "margin": chosen_P - rejected_P,
        "nll": np.asarray(result["pairs"]["nll"]),
    }


def _measure(spec: dict[str, Any]) -> dict[str, Any]:
    from oddsmith.cli.commands.train.recipe import trainer_from_recipe

    settings = {**SETTINGS, **spec.get("settings", {}), "seed": spec["seed"]}
    evaluated = {"eval_strategy": "steps", "eval_steps": spec.get("curve") or 1_000_000}
    with tempfile.TemporaryDirectory() as folder:
        given = {
            **settings,
            **evaluated,
            "dataset_name": spec["train"] or spec["test"],
            "eval_dataset_name": spec["test"],
            "per_device_eval_batch_size": 16,
            "output_dir": folder,
            "report_to": "none",
            "disable_tqdm": True,
        }
        trainer = trainer_from_recipe(*flags_of(given))
        start = time.perf_counter()
        if spec["train"]:
            trainer.train()
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        if not spec["train"]:
            trainer.evaluate()  # a training ends with an evaluation
        pairs = trainer.evaluation_meter.pairs(list)
        history = [entry for entry in trainer.state.log_history if "loss" in entry]
        evaluations = [
            {name.removeprefix("eval_"): value for name, value in entry.items() if isinstance(value, float | int)}
            for entry in trainer.state.log_history
            if "eval_loss" in entry
        ]
        found = {
            "spec": {**spec, "train": _name(spec["train"]), "test": _name(spec["test"])},
            "settings": settings,
            "steps": trainer.state.global_step,
            "seconds_of_training": seconds,
            "peak_gib": peak,
            "metrics": evaluations[-1],
            "history": {
                name: [entry.get(name) for entry in history]
                for name in ("loss", "nll_loss", "log_odds_ratio", "logps/chosen", "logps/rejected", "grad_norm")
            },
            "evaluations": evaluations,
            "pairs": {
                "chosen": pairs.logps_P2[:, 0].tolist(),
                "rejected": pairs.logps_P2[:, 1].tolist(),
                "nll": pairs.nll_P.tolist(),
            },
        }
        if spec["train"]:
            verdict = oddsmith("diagnose", folder)
            found["verdict"] = {name: verdict[name] for name in ("verdict", "findings") if name in verdict}
        if spec.get("general"):
            trainer.model.eval()
            found["text_perplexity"] = text_perplexity(trainer.model, trainer.processing_class)
            found["facts"] = facts_kept(trainer.model, trainer.processing_class)
        return found


def _name(file: str | None) -> str | None:
    return None if file is None else Path(file).name


def main() -> None:
    """Measure what ``--apart`` says, and print the result as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--apart", required=True)
    found = _measure(json.loads(parser.parse_args().apart))
    if not math.isfinite(sum(found["pairs"]["chosen"])):
        print("some log-probabilities are not finite", file=sys.stderr)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
