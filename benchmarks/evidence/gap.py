"""The paper's claim (arXiv 2403.07691, figure 3): fine-tuning on chosen answers makes rejected ones likelier, too.

    python -m benchmarks.evidence.gap --data FOLDER --work FOLDER [--set NAME] [--plot docs/evidence-gap.svg]

The same pairs, order, steps and learning rate, three seeds; only beta differs: 0 is supervised fine-tuning on the
chosen answers (the odds-ratio term has no weight), the other is ORPO. The mean log-probability of chosen and rejected
answers of held-out pairs is measured along the way.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .lab import bootstrap, kept
from .measure import figures, trained
from .preferences import epochs_of, files_of
from .sets import SETS

QUESTION = "gap"
SEEDS = (1, 2, 3)
EVERY = 6  # steps between two evaluations
METHODS = {"fine-tuning": 0.0, "ORPO": 1.0}  # beta
RATE = 2e-4


def measured(name: str, data: Path, work: Path) -> dict[str, list[dict[str, Any]]]:
    """Make, or read, the runs of both methods."""
    parts, files = files_of(name, data, work)
    found: dict[str, list[dict[str, Any]]] = {"before": [], **{method: [] for method in METHODS}}
    before = {"train": None, "test": str(files["test"]), "seed": 0}
    found["before"].append(kept(QUESTION, f"{name}-before", lambda: trained(before)))
    for method, beta in METHODS.items():
        for seed in SEEDS:
            settings = {"beta": beta, "learning_rate": RATE, "num_train_epochs": epochs_of(len(parts.train))}
            spec = {"train": str(files["train"]), "test": str(files["test"]), "settings": settings, "seed": seed}
            spec["curve"] = EVERY
            label = f"{name}-{method.lower().replace(' ', '-')}-seed-{seed}"
            found[method].append(kept(QUESTION, label, lambda spec=spec: trained(spec)))
    return found


def report(found: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """Yield the table: what each method did to both log-probabilities, and to the gap between them."""
    before = found["before"][0]
    yield "| change on held-out pairs, nats a token | chosen | rejected | gap | accuracy |"
    yield "|---|---|---|---|---|"
    for method in METHODS:
        cells = []
        for side in ("chosen", "rejected"):
            changes_SP = [np.subtract(result["pairs"][side], before["pairs"][side]) for result in found[method]]
            cells.append(bootstrap(np.stack(changes_SP)).text(3, sign=True))
        for figure, scale, digits in (("margin", 1, 3), ("accuracy", 100, 1)):
            changes = [figures(result)[figure] - figures(before)[figure] for result in found[method]]
            cells.append(bootstrap(np.stack(changes)).text(digits, scale, sign=True))
        yield f"| {method}, {len(found[method])} seeds | {' | '.join(cells)} |"


def curves(found: dict[str, list[dict[str, Any]]], method: str) -> dict[str, np.ndarray]:
    """Return steps [E], and for both sides [S, E] the held-out log-probability at each of them."""
    before = found["before"][0]["metrics"]
    lines: dict[str, list[list[float]]] = {"chosen": [], "rejected": []}
    steps = [0.0, *(one["step"] for one in found[method][0]["evaluations"])]
    for result in found[method]:
        for side, values in lines.items():
            values.append([before[f"logps/{side}"], *(one[f"logps/{side}"] for one in result["evaluations"])])
    return {"steps": np.array(steps), **{side: np.array(values) for side, values in lines.items()}}


def main() -> None:
    """Make the runs that are missing; print the table and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--set", choices=SETS, default="orca_dpo_validation")
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    found = measured(given.set, given.data, given.work)
    print("\n".join(report(found)))
    if given.plot:
        from .pictures import gap_picture

        given.plot.write_text(gap_picture({method: curves(found, method) for method in METHODS}), encoding="utf-8")


if __name__ == "__main__":
    main()
