"""Does ORPO learn preferences that it has not seen? Real pairs, held out by dialogue, before and after.

    python -m benchmarks.evidence.preferences --data FOLDER --work FOLDER [--sets NAME ...]

For each set settings are searched by `oddsmith tune` on the validation pairs alone. All training pairs are then trained
on with three seeds, and the first set also on fewer of them (a learning curve). Epochs are chosen so that small sets
are seen three times. Results that are there are only reported.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .lab import MODEL, bootstrap, kept, oddsmith, write_rows
from .measure import SETTINGS, figures, trained
from .sets import SETS, Split, split

QUESTION = "preferences"
SEEDS = (1, 2, 3)
SIZES = (100, 300, 1000)  # of the learning curve, beside all
CURVE = "hh_helpful_base"
SEARCH = ("learning_rate=5e-5:1e-3:log", "beta=0.1,0.25,0.5,1.0")
TRIALS, PROBE_STEPS, PROBE_PAIRS = 6, 25, 200


def epochs_of(pairs: int) -> int:
    """Return how often pairs are seen: small sets three times."""
    return 3 if pairs <= 300 else 1


def files_of(name: str, data: Path, work: Path) -> tuple[Split, dict[str, Path]]:
    """Write the split of a set; return it, and its files by part."""
    parts = split(name, data)
    files = {part: work / name / f"{part}.jsonl" for part in ("train", "validation", "test")}
    for part, file in files.items():
        write_rows(file, getattr(parts, part))
    return parts, files


def searched(name: str, files: dict[str, Path], work: Path) -> dict[str, Any]:
    """Search learning rate and beta with `oddsmith tune`; return its document."""
    own = {**SETTINGS, "dataset_name": str(files["train"]), "eval_dataset_name": str(files["validation"])}
    own |= {"max_steps": PROBE_STEPS, "seed": 0}
    recipe = work / name / "tune.yaml"
    recipe.write_text("".join(f"{key}: {value}\n" for key, value in own.items()), encoding="utf-8")
    words = [word for one in SEARCH for word in ("--search", one)]
    return oddsmith(
        "tune", recipe, *words, "--trials", TRIALS, "--steps", PROBE_STEPS, "--output", work / name / "tune"
    )


def measured(name: str, data: Path, work: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Make, or read, all results of a set; yield them by name."""
    parts, files = files_of(name, data, work)
    before = kept(QUESTION, f"{name}-before", lambda: trained({"train": None, "test": str(files["test"]), "seed": 0}))
    yield "before", before
    search = kept(QUESTION, f"{name}-search", lambda: {**searched(name, files, work), "parts": counts(parts)})
    yield "search", search
    best = search["best"] or {}
    sizes = [*(size for size in SIZES if name == CURVE and size < len(parts.train)), len(parts.train)]
    for size in sizes:
        file = write_rows(work / name / f"train-{size}.jsonl", parts.train[:size])
        for seed in SEEDS:
            settings = {**best, "num_train_epochs": epochs_of(size)}
            spec = {"train": str(file), "test": str(files["test"]), "settings": settings, "seed": seed}
            label = f"{size}-seed-{seed}"
            yield label, kept(QUESTION, f"{name}-{label}", lambda spec=spec: trained(spec))


def counts(parts: Split) -> dict[str, Any]:
    """Return how many pairs a split has."""
    return {
        **{part: len(getattr(parts, part)) for part in ("train", "validation", "test")},
        "left out": parts.left_out,
    }


def report(name: str, results: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yield the table of a set."""
    before = figures(results["before"])
    by_size: dict[int, list[dict[str, np.ndarray]]] = {}
    for label, result in results.items():
        if label not in ("before", "search"):
            by_size.setdefault(int(label.partition("-")[0]), []).append(figures(result))
    yield f"| {name} | accuracy | margin, nats a token | log-odds | perplexity of chosen |"
    yield "|---|---|---|---|---|"
    yield f"| before | {_row(before, results['before'])} |"
    for size, found in sorted(by_size.items()):
        together = {figure: np.stack([one[figure] for one in found]) for figure in before}
        perplexities = [
            result["metrics"]["perplexity/chosen"] for label, result in results.items() if label.startswith(f"{size}-")
        ]
        yield f"| {size} pairs, {len(found)} seeds | {_row(together, None)} {np.mean(perplexities):.2f} |"
        changes = {figure: together[figure] - before[figure] for figure in before}
        yield f"| &nbsp; change | {_row(changes, None, sign=True)} |"


def _row(found: dict[str, np.ndarray], result: dict[str, Any] | None, sign: bool = False) -> str:
    accuracy = bootstrap(found["accuracy"]).text(1, 100, sign) + "%"
    cells = [accuracy, bootstrap(found["margin"]).text(3, sign=sign), bootstrap(found["log_odds"]).text(3, sign=sign)]
    perplexity = "" if result is None else f"{result['metrics']['perplexity/chosen']:.2f}"
    return " | ".join([*cells, perplexity])


def main() -> None:
    """Make the results that are missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="with the files of sets.py")
    parser.add_argument("--work", type=Path, required=True, help="for splits and probes; used again")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    given = parser.parse_args()
    print(f"{MODEL}; 95% intervals by bootstrap over pairs and seeds")
    for name in given.sets:
        results = {}
        for label, result in measured(name, given.data, given.work):
            results[label] = result
            print(f"{name} {label}: {result['made']['seconds']:.0f} s", file=sys.stderr)
        print("\n".join(report(name, results)), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
