"""How long a start takes and how much memory, for 10,000 pairs and more; how balanced steps of many processes are.

    python benchmarks/scale.py [--pairs 10000 100000 300000] [--folder FOLDER] --output benchmarks/results/scale.md

The pairs are made of the built-in ones, with the median lengths of HH helpful: prompts of 370 characters, answers of
180. Each start is a process of its own: rows, tokens, what the model can read, lengths, the plan of an epoch, and the
identity of the run, as a training does before its first step, but for the model. The second start finds the tokens of
the first in the cache.

Private memory is what a process shares with no other; the pages of the tokens' file, which the system may drop, are
not in it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
import psutil

MODEL = "builtin:smollm2-135m-instruct"
ANSWER_CHARACTERS = 5.2  # the logarithm of the median
SHAPES = ((8, 8), (8, 2), (64, 2), (64, 1), (1024, 2), (1024, 1))  # processes, pairs of each
BALANCED_PAIRS = 200_000
TIMED_STEPS = 20
WATCH_S = 1.0  # looking for children takes 2 ms of the main process


def start(path: str) -> None:
    """Do what a training does before its first step; print the seconds of each part and the peak memory as JSON."""
    parts_s: dict[str, float] = {}

    @contextmanager
    def part(name: str) -> Iterator[None]:
        started_at = time.perf_counter()
        yield
        parts_s[name] = time.perf_counter() - started_at

    with part("imports"):
        from oddsmith.batching.loader import BatchMaker, LoaderFactory, lengths_of
        from oddsmith.batching.plan import StepShape
        from oddsmith.data.limits import ModelLimits, readable
        from oddsmith.data.prepare import prepare
        from oddsmith.data.sources import load_rows
        from oddsmith.data.tokens.pair_tokenizer import PairTokenizer
        from oddsmith.model.loading.models import load_tokenizer
        from oddsmith.training.identity import _digest

        tokenizer = load_tokenizer(MODEL)
    peaks = {"main": 0, "worker": 0}
    threading.Thread(target=_watch, args=(peaks,), daemon=True).start()
    with part("rows"):
        rows = load_rows(path)
    with part("tokens"):
        dataset = prepare(rows, PairTokenizer(tokenizer, max_length=1024)).dataset
        readable(dataset, ModelLimits(len(tokenizer), 2048), tokenizer, "train")
    with part("plan"):
        measure = partial(lengths_of, nll_on="sequence", shared_prompt_from=0)
        factory = LoaderFactory(dataset, StepShape(8, 1, 8), 0, BatchMaker(lambda rows: {}), measure, {})
        _, plan = factory.training(seed=0, shuffle=True, drop_last=False, group_by_length=True)
        next(iter(plan))
        plan.slowest_share()
    with part("identity"):
        _digest(dataset)
    print(json.dumps({"parts_s": parts_s, "peaks": peaks}))


def _watch(peaks: dict[str, int]) -> None:
    """Keep the highest private memory of this process, and of any of its children, in bytes."""
    main = psutil.Process()
    while True:
        for process in (main, *main.children()):
            with suppress(psutil.NoSuchProcess):
                memory = process.memory_info()
                name = "main" if process is main else "worker"
                peaks[name] = max(peaks[name], memory.rss - memory.shared)
        time.sleep(WATCH_S)


def measured_start(path: Path) -> dict:
    """Run a start in a process of its own."""
    command = [sys.executable, __file__, "--start", str(path)]
    before, started_at = os.times(), time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    seconds, after = time.perf_counter() - started_at, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return json.loads(done.stdout.splitlines()[-1]) | {"seconds": seconds, "of processors": cpu}


def start_rows(sizes: list[int], folder: Path) -> Iterator[str]:
    """Measure first and second starts; yield the lines of a table."""
    from data_check import write_pairs

    names = "imports | rows | tokens | plan | identity"
    yield f"| pairs | file | start | seconds | of processors | {names} | private memory | of a worker |"
    yield "|---" * 12 + "|"
    for pairs in sizes:
        path = folder / f"{pairs}.jsonl"
        if not path.exists():
            write_pairs(path, pairs, ANSWER_CHARACTERS)
        for name in ("first", "second"):
            found = measured_start(path)
            parts = (found["seconds"], found["of processors"], *found["parts_s"].values())
            seconds = " | ".join(f"{part:.1f}" for part in parts)
            main, worker = (f"{peak / 1e6:,.0f} MB" if peak else "-" for peak in found["peaks"].values())
            yield f"| {pairs:,} | {path.stat().st_size / 1e6:,.0f} MB | {name} | {seconds} | {main} | {worker} |"


def balance_rows() -> Iterator[str]:
    """Yield the lines of a table of how long processes wait, and of the time that planning a step takes."""
    from oddsmith.batching.loader import TrainingAssignments
    from oddsmith.batching.plan import Lengths, StepShape

    # Median and spread (of logarithms) of the pairs of HH helpful in SmolLM2's tokens, prompts counted once.
    tokens = np.random.default_rng(0).lognormal(math.log(233), 0.58, BALANCED_PAIRS).astype(int).clip(2, 1024)
    yield "| processes | pairs of each | random | group_by_length | planning a step |"
    yield "|---|---|---|---|---|"
    for processes, pairs in SHAPES:
        shares = []
        for grouped_by in (None, tokens):
            plan = TrainingAssignments(
                Lengths(tokens, tokens), StepShape(pairs, 1, processes), 0,
                seed=0, shuffle=True, drop_last=False, grouped_by=grouped_by,
            )  # fmt: skip
            shares.append(plan.slowest_share())
        items = iter(plan)
        next(items)  # with the order of the epoch
        started_at = time.perf_counter()
        for _ in range(TIMED_STEPS):
            next(items)
        step_ms = 1000 * (time.perf_counter() - started_at) / TIMED_STEPS
        yield f"| {processes:,} | {pairs} | {shares[0]:.2f} | {shares[1]:.2f} | {step_ms:.1f} ms |"


def main() -> None:
    """Measure all, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[10_000, 100_000, 300_000])
    parser.add_argument("--folder", type=Path, help="for the pairs; files that are there are used again")
    parser.add_argument("--machine", default="", help="what is to be said about it")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--start", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.start:
        start(given.start)
        return
    from oddsmith.model.loading.models import load_tokenizer

    title = f"{date.today()}, {given.machine or 'cores:'} {len(os.sched_getaffinity(0))} cores"
    lines = [
        "# `python benchmarks/scale.py`",
        "",
        f"{title}.",
        "",
        "## The slowest process, in tokens of the mean one",
        "",
    ]
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["ODDSMITH_CACHE"] = str(Path(temporary) / "cache")
        load_tokenizer(MODEL)  # makes the model in the cache
        lines += [*balance_rows(), "", "## Before the first step", ""]
        for line in start_rows(given.pairs, given.folder or Path(temporary)):
            print(line, flush=True)
            lines.append(line)
            if given.output:
                given.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
