"""How long a start takes and how much memory, for 10,000 pairs and more; how balanced steps of many processes are.

    python benchmarks/scale.py [--pairs 10000 100000 300000] [--folder FOLDER] --output benchmarks/results/scale.md
    python benchmarks/scale.py --only checkpoints                               the cost of a checkpoint alone

The pairs are made of the built-in ones, with the median lengths of HH helpful: prompts of 370 characters, answers of
180. Each start is a process of its own: rows, tokens, what the model can read, lengths, the plan of an epoch, and the
identity of the run, as a training does before its first step, but for the model. The second start finds the tokens of
the first in the cache.

A checkpoint costs the seconds between the end of the step after which it is saved and the beginning of the next one.
It is that of a Llama of 50 million parameters in float32 with AdamW, 0.6 GB.

Private memory is what a process shares with no other; the pages of the tokens' file, which the system may drop, are
not in it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import date
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import psutil

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # for ``tests``
MODEL = "builtin:smollm2-135m-instruct"
ANSWER_CHARACTERS = 5.2  # the logarithm of the median
SHAPES = ((8, 8), (8, 2), (64, 2), (64, 1), (1024, 2), (1024, 1))  # processes, pairs of each
BALANCED_PAIRS = 200_000
TIMED_STEPS = 20
STEPS, SAVED_EVERY = 11, 5  # of a training whose checkpoints are measured
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
            os.sync()  # of the tokens that the first start has written, some GB may not be on the disk yet
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


# ---- Checkpoints


def checkpoint_rows(folder: Path) -> Iterator[str]:
    """Yield the lines of a table of what a checkpoint costs, with and without ``async_save``."""
    yield "| processes | async_save | a checkpoint | steps wait | complete after | a step | a step meanwhile |"
    yield "|---|---|---|---|---|---|---|"
    for processes in (1, 2):
        for beside in (False, True):
            found = measured_checkpoints(processes, beside, folder / f"{processes}-{beside}")
            name = "one" if processes == 1 else "two, FSDP2 (`SHARDED_STATE_DICT`)"
            seconds = " | ".join(f"{found[part]:.1f} s" if part in found else "-" for part in PARTS)
            yield f"| {name} | {'on' if beside else 'off'} | {found['bytes'] / 1e9:.1f} GB | {seconds} |"


PARTS = ("wait", "complete", "step", "step meanwhile")


def measured_checkpoints(processes: int, beside: bool, folder: Path) -> dict:
    """Train in processes of their own; return what the first one has found."""
    from tests.forked import free_port, rank_environment

    port = free_port()
    command = [sys.executable, __file__, "--checkpoint", str(folder), *(["--beside"] if beside else [])]
    common = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    running = [
        subprocess.Popen([*command], stdout=subprocess.PIPE, env=common | rank_environment(rank, processes, port))
        for rank in range(processes)
    ]
    texts = [one.communicate()[0] for one in running]
    if any(one.returncode for one in running):
        raise RuntimeError("a training has failed; its messages are above")
    shutil.rmtree(folder)
    return json.loads(texts[0].splitlines()[-1])


def checkpoint(folder: str, *, beside: bool) -> None:
    """Train in this process, alone or as one of several; print what its checkpoints cost as JSON."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

    from oddsmith import ORPOTrainer
    from tests.distributed import gpu_road
    from tests.distributed.kinds import KINDS
    from tests.tiny import ragged_pairs
    from tests.tiny_runs import make_trainer

    torch.set_num_threads(1)
    began: dict[int, float] = {}
    ended: dict[int, float] = {}
    complete: dict[int, float] = {}

    class Moments(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            began[state.global_step + 1] = time.perf_counter()

        def on_step_end(self, args, state, control, **kwargs):
            ended[state.global_step] = time.perf_counter()

    class Timed(ORPOTrainer):
        def checkpoint_is_complete(self, folder: Path, beside_s: float) -> None:
            super().checkpoint_is_complete(folder, beside_s)
            complete[int(folder.name.partition("-")[2])] = time.perf_counter()

    kind = {}
    if "RANK" in os.environ:
        gpu_road.take()
        kind = {**KINDS["fsdp-sharded"], "use_cpu": False}
    sizes = {"hidden_size": 640, "intermediate_size": 1760, "num_hidden_layers": 10, "num_attention_heads": 10}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=264, num_key_value_heads=10, **sizes))
    trainer = make_trainer(
        Path(folder), model, ragged_pairs(64), kind=Timed, callbacks=[Moments()], max_steps=STEPS, max_length=64,
        optim="adamw_torch", save_strategy="steps", save_steps=SAVED_EVERY, save_total_limit=2, async_save=beside,
        **kind,
    )  # fmt: skip
    trainer.train()
    saved = [step for step in sorted(complete) if step < STEPS]
    held = {step: began[step + 1] - ended[step] for step in saved}
    meanwhile = [s for s in range(2, STEPS + 1) if any(step < s and began[s] < complete[step] for step in saved)]
    alone = [s for s in range(2, STEPS + 1) if s not in meanwhile]
    found = {
        "bytes": sum(file.stat().st_size for file in Path(folder, f"checkpoint-{STEPS}").rglob("*") if file.is_file()),
        "wait": sum(held.values()) / len(held),
        "complete": sum(complete[step] - ended[step] for step in saved) / len(saved),
        "step": sum(ended[s] - began[s] for s in alone) / len(alone),
    }
    if meanwhile:
        found["step meanwhile"] = sum(ended[s] - began[s] for s in meanwhile) / len(meanwhile)
    print(json.dumps(found))
    if "RANK" in os.environ:
        trainer.accelerator.wait_for_everyone()
        trainer.accelerator.state.destroy_process_group()


def main() -> None:
    """Measure all, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[10_000, 100_000, 300_000])
    parser.add_argument("--folder", type=Path, help="for the pairs; files that are there are used again")
    parser.add_argument("--machine", default="", help="what is to be said about it")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--only", choices=["checkpoints", "starts"], help="measure nothing else")
    parser.add_argument("--start", help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", help=argparse.SUPPRESS)
    parser.add_argument("--beside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.checkpoint:
        checkpoint(given.checkpoint, beside=given.beside)
        return
    if given.start:
        start(given.start)
        return
    from oddsmith.model.loading.models import load_tokenizer

    title = f"{date.today()}, {given.machine or 'cores:'} {len(os.sched_getaffinity(0))} cores"
    lines = ["# `python benchmarks/scale.py`", "", f"{title}.", ""]
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["ODDSMITH_CACHE"] = str(Path(temporary) / "cache")
        folder = given.folder or Path(temporary)
        load_tokenizer(MODEL)  # makes the model in the cache
        parts = {}
        if given.only != "starts":
            parts["What a checkpoint costs"] = checkpoint_rows(folder)
        if given.only is None:
            parts["The slowest process, in tokens of the mean one"] = balance_rows()
        if given.only != "checkpoints":
            parts["Before the first step"] = start_rows(given.pairs, folder)
        for name, rows in parts.items():
            for line in chain((f"## {name}", ""), rows, ("",)):
                print(line, flush=True)
                lines.append(line)
                if given.output:
                    given.output.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
