"""Learning rate and beta: what each does to the preference, to the answers' likelihood, and to what was known before.

    python -m benchmarks.evidence.grid --data FOLDER --work FOLDER [--set NAME]

One run for each pair of settings, all from the same seed and in the same order, on one set of real pairs. Beside the
held-out pairs each run is asked for the likelihood of a general text and for simple facts (facts.py), and `oddsmith
diagnose` is asked for its verdict: how those agree with what was measured is the last table.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from oddsmith.tuning.objective import pair_costs

from .lab import bootstrap, kept
from .measure import figures, trained
from .preferences import epochs_of, files_of
from .sets import SETS

QUESTION = "grid"
RATES = (2e-5, 1e-4, 5e-4, 2e-3)
BETAS = (0.05, 0.25, 1.0)


def measured(name: str, data: Path, work: Path) -> dict[str, dict[str, Any]]:
    """Make, or read, all runs; by name, ``before`` first."""
    parts, files = files_of(name, data, work)
    spec = {"train": None, "test": str(files["test"]), "seed": 1, "general": True}
    found = {"before": kept(QUESTION, f"{name}-before", lambda: trained(spec))}
    for rate in RATES:
        for beta in BETAS:
            settings = {"beta": beta, "learning_rate": rate, "num_train_epochs": epochs_of(len(parts.train))}
            run = {**spec, "train": str(files["train"]), "settings": settings}
            label = f"{name}-{rate:g}-{beta:g}"
            found[label] = kept(QUESTION, label, lambda run=run: trained(run))
    return found


def gain_of(result: dict[str, Any], before: dict[str, Any]) -> np.ndarray:
    """Return by how much each pair costs less than before, as `oddsmith tune` counts it: nats. [P]"""
    costs = [pair_costs(figures(one)["log_odds"], one["pairs"]["chosen"]) for one in (before, result)]
    return costs[0] - costs[1]


def report(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yield the tables."""
    before = found["before"]
    heads = "accuracy | log-odds | perplexity of chosen | gain | perplexity of a general text | facts | diagnosis"
    yield f"| learning rate | beta | {heads} |"
    yield "|--:|--:|---|---|--:|---|--:|--:|---|"
    outcomes: Counter[tuple[str, str]] = Counter()
    for label, result in found.items():
        measures = figures(result)
        gain = bootstrap(gain_of(result, before))
        verdict = result.get("verdict", {}).get("verdict", "")
        settings = result["settings"]
        named = ("", "") if label == "before" else (f"{settings['learning_rate']:g}", f"{settings['beta']:g}")
        yield (
            f"| {named[0] or 'before'} | {named[1]} | {bootstrap(measures['accuracy']).text(1, 100)}"
            f" | {bootstrap(measures['log_odds']).text(2)} | {result['metrics']['perplexity/chosen']:.2f}"
            f" | {gain.text(3, sign=True) if verdict else ''} | {result['text_perplexity']:.2f}"
            f" | {sum(result['facts'])} of {len(result['facts'])} | {verdict} |"
        )
        if verdict:
            outcomes[verdict, outcome_of(result, before)] += 1
    yield ""
    yield "| diagnosis | better | no difference | worse |"
    yield "|---|--:|--:|--:|"
    for verdict in sorted({verdict for verdict, _ in outcomes}):
        yield f"| {verdict} | " + " | ".join(str(outcomes[verdict, one]) for one in ("better", "same", "worse")) + " |"


def outcome_of(result: dict[str, Any], before: dict[str, Any]) -> str:
    """Return whether held-out pairs cost less than before, more, or neither, by the 95% interval."""
    return {1: "better", 0: "same", -1: "worse"}[bootstrap(gain_of(result, before)).sign]


def main() -> None:
    """Make the runs that are missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--set", choices=SETS, default="orca_dpo_validation")
    given = parser.parse_args()
    print("\n".join(report(measured(given.set, given.data, given.work))))


if __name__ == "__main__":
    main()
