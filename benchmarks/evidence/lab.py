"""What all questions share: who made a result and how, results that are kept, and intervals.

A result is one JSON file under ``benchmarks/results/evidence/QUESTION``, written when its run has ended. One that is
there is not made again, so a script that was interrupted goes on, and one that is run after it only reports. To make a
result again, remove its file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from oddsmith.system.machine import processor_name, usable_cores

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "evidence"
MODEL = "builtin:smollm2-135m-instruct"
DRAWS = 10_000  # of the bootstrap
FIGURES = 6  # significant digits that are kept


class Interval(NamedTuple):
    """A mean with its 95% interval."""

    mean: float
    low: float
    high: float

    def text(self, digits: int = 3, scale: float = 1.0, sign: bool = False) -> str:
        """Return it as ``mean [low, high]``; with ``sign`` a mean that is not negative begins with +."""
        mean, low, high = (scale * one for one in self)
        return f"{mean:{'+' if sign else ''}.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"

    @property
    def sign(self) -> int:
        """Return 1 or -1 where all of it lies above or below 0, otherwise 0."""
        return (self.low > 0) - (self.high < 0)


def bootstrap(values_SP: Sequence[Sequence[float]] | np.ndarray, seed: int = 0) -> Interval:
    """Return the mean over seeds and items, with the 95% percentile interval over items (and seeds).

    Items (pairs, prompts) are drawn with replacement; where there are several seeds, they are drawn as well, because a
    training with another seed is another model. Three seeds say little of their own spread: it is printed beside.

    Args:
        values_SP: [S, P] a figure for each seed and item, or [P].
        seed: Of the draws.

    Returns:
        Mean and interval.
    """
    found_SP = np.atleast_2d(np.asarray(values_SP, dtype=float))
    draw = np.random.default_rng(seed)
    seeds, items = found_SP.shape
    means = np.empty(DRAWS)
    for number in range(DRAWS):
        drawn = found_SP[draw.integers(seeds, size=seeds)] if seeds > 1 else found_SP
        means[number] = drawn[:, draw.integers(items, size=items)].mean()
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(float(found_SP.mean()), float(low), float(high))


def kept(question: str, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return a result, made now if it is not there; see the module's docstring."""
    file = RESULTS / question / f"{name}.json"
    if not file.exists():
        start = time.monotonic()
        found = make()
        document = {"made": made(time.monotonic() - start), **_rounded(found)}
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        partial.write_text(_text_of(document), encoding="utf-8")
        partial.replace(file)
    return json.loads(file.read_text(encoding="utf-8"))


def made(seconds: float) -> dict[str, Any]:
    """Return what tells how a result was made."""
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
        "commit": _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain", "src") else ""),
        "command": " ".join(
            ["python -m", f"benchmarks.evidence.{Path(sys.argv[0]).stem}", *map(_without_folder, sys.argv[1:])]
        ),
        "machine": f"{processor_name()}, {usable_cores()} cores, {os.environ.get('OMP_NUM_THREADS', 'all')} threads",
        "seconds": round(seconds, 1),
        "packages": {name: version(name) for name in ("torch", "transformers", "peft")},
    }


def oddsmith(*words: object, cwd: Path | None = None) -> dict[str, Any]:
    """Run a command of Oddsmith with ``--json``; return its document.

    Exit code 3 (something was found) is an answer, too; any other but 0 ends the program.
    """
    command = [sys.executable, "-P", "-m", "oddsmith", *map(str, words), "--json"]
    done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, 3):
        sys.exit(f"oddsmith {' '.join(map(str, words))} ended with {done.returncode}")
    return json.loads(done.stdout)


def flags_of(settings: dict[str, Any]) -> list[str]:
    """Return settings as flags of a command."""
    return [word for name, value in settings.items() for word in (f"--{name}", json.dumps(value).strip('"'))]


def apart(module: str, document: dict[str, Any]) -> dict[str, Any]:
    """Run ``python -m benchmarks.evidence.MODULE --apart DOCUMENT`` in a process of its own; return what it prints."""
    command = [sys.executable, "-m", f"benchmarks.evidence.{module}", "--apart", json.dumps(document)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"{module} ended with {done.returncode}: {json.dumps(document)}")
    return json.loads(done.stdout.splitlines()[-1])


def model_in_bf16(work: Path) -> str:
    """Return a copy of the model with weights in bfloat16, made once: it answers faster than the stored float32."""
    folder = work / "smollm2-135m-instruct-bf16"
    if not (folder / "config.json").exists():
        oddsmith("export", MODEL, "--to", "merged", "--dtype", "bfloat16", "--output", folder)
    return str(folder)


def write_rows(file: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write JSON Lines; return the file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Read JSON Lines."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]


def _without_folder(word: str) -> str:
    """Return the last part of a path; where a reader's files are is his own."""
    return Path(word).name if "/" in word else word


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{FIGURES}g}")
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return value


def _text_of(document: dict[str, Any]) -> str:
    """Return JSON with a line for each name, so that long lists stay on one."""
    lines = (f"{json.dumps(name)}: {json.dumps(value)}" for name, value in document.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    return done.stdout.strip()
