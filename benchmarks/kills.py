"""Runs are killed with SIGKILL at random moments, resumed, and compared with undisturbed ones to the last bit.

python benchmarks/kills.py 60                            as many kills over all variants; exit code 1 if a run differs
python benchmarks/kills.py 60 --output FILE              and write the table there
python benchmarks/kills.py 20 --kind fsdp-sharded        of runs that are sharded so, in two processes

Kinds: fsdp-sharded, fsdp-full, zero-2, zero-3 (DeepSpeed has to be installed); by default none of them.

Variants: LoRA and full, dropout and none, dataset and stream, one process and two (tests/killed_runs.py).
Moments: while saving, evaluating, training, at any time, while ending; drawn by the seed. Of two processes one or both
are killed.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))

from tests.killed_runs import PHASES, SHARDED, VARIANTS, Variant
from tests.kills import Kill, Trials

KILLS_A_RUN = 5


def main() -> int:
    """Kill, print the table, and say by the exit code whether every run survived."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kills", type=int, nargs="?", default=60)
    parser.add_argument("--kind", choices=list(dict.fromkeys(variant.kind for variant in SHARDED)), nargs="+")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    started_at = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        variants = VARIANTS if given.kind is None else [one for one in SHARDED if one.kind in given.kind]
        rows, wrong = kill(given.kills, given.seed, Path(folder), variants)
    lines = [*table(rows), "", summary(rows, wrong, time.monotonic() - started_at)]
    print("\n".join(lines))
    if given.output:
        given.output.write_text("\n".join([*heading(given), *lines]) + "\n", encoding="utf-8")
    return int(bool(wrong))


def kill(
    kills: int, seed: int, folder: Path, variants: Sequence[Variant]
) -> tuple[dict[str, list[list[Kill]]], list[str]]:
    """Train one run of a variant after another until enough kills have hit.

    Args:
        kills: At least so many.
        seed: Draws moments and victims.
        folder: For run folders.
        variants: Of which the runs are.

    Returns:
        The kills of each run by variant, and what was wrong, in words.
    """
    trials = {variant.name: Trials(variant, folder / variant.name, seed) for variant in variants}
    rows: dict[str, list[list[Kill]]] = {name: [] for name in trials}
    wrong: list[str] = []
    number = 0
    while sum(len(run) for runs in rows.values() for run in runs) < kills:
        number += 1
        for name, of_variant in trials.items():
            trial = of_variant.run(f"run-{number}", KILLS_A_RUN)
            rows[name].append(trial.kills)
            wrong += [f"{name}, run {number}: {what}" for what in trial.wrong]
            shutil.rmtree(folder / name / f"run-{number}")
            print(f"{name}: {len(trial.kills)} kills, {len(trial.wrong)} differences", file=sys.stderr)
            for what in trial.wrong:
                print(f"  {what}", file=sys.stderr)
    return rows, wrong


def table(rows: dict[str, list[list[Kill]]]) -> list[str]:
    """A line a variant, and the sums."""
    lines = [f"| run | runs | kills | {' | '.join(PHASES)} |", f"|---|{'--:|' * (2 + len(PHASES))}"]
    every = Counter[str]()
    for name, runs in rows.items():
        where = Counter(hit.phase for run in runs for hit in run)
        every += where
        lines.append(_line(name, len(runs), where))
    return [*lines, _line("all", sum(map(len, rows.values())), every)]


def _line(name: str, runs: int, where: Counter[str]) -> str:
    return f"| {name} | {runs} | {where.total()} | {' | '.join(str(where[phase]) for phase in PHASES)} |"


def summary(rows: dict[str, list[list[Kill]]], wrong: list[str], seconds: float) -> str:
    """One paragraph."""
    hits = [hit for runs in rows.values() for run in runs for hit in run if hit.survivor_s is not None]
    waits = [hit.survivor_s for hit in hits if hit.survivor_s is not None and not hit.hung]
    count = sum(map(len, rows.values()))
    differ = len({what.partition(":")[0] for what in wrong})
    return (
        f"{count - differ} of {count} runs ended with the same bytes in weights, optimizer and random states, and the"
        f" same logged values, as the undisturbed ones. Where one of two processes was killed ({len(waits)} times), the"
        f" other had ended by itself after {max(waits, default=0.0):.1f} s at most; {len(hits) - len(waits)} more were"
        f" hit before the processes had met, where only a launcher can end the other. {seconds:.0f} s in all."
    )


def heading(given: argparse.Namespace) -> list[str]:
    """What was run, where."""
    from importlib.metadata import version

    kinds = "" if given.kind is None else f" --kind {' '.join(given.kind)}"
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
    return [
        "# Kills survived",
        "",
        f"`python benchmarks/kills.py {given.kills} --seed {given.seed}{kinds}`, {time.strftime('%Y-%m-%d')},"
        f" {os.cpu_count()} CPU cores,"
        f" Python {platform.python_version()}, {versions}.",
        "",
    ]


if __name__ == "__main__":
    sys.exit(main())
