"""Oddsmith against TRL 1.16 on one NVIDIA GPU: exact first, then speed and memory. Needs no network and no files.

python benchmarks/gpu.py [--work NAME ...] [--steps N] [--repeats N] [--minutes N] [--quick] [--json] [--output FILE.md]

| work | model (random weights) | trained | pairs |
|---|---|---|---|
| llama-8b-lora | the shape of Llama 3 8B | LoRA r=16, all linear, bf16 base | 4 a step |
| qwen-0.5b-full | the shape of Qwen 2.5 0.5B, 151,936 words | all weights, float32 | 8 a step |

Lengths are drawn like UltraFeedback's (about 185 tokens of prompt, 305 of response, long tails), max_length 2048.
Before anything is timed, packed rows are compared with padded batches in float32 and bf16 (on_gpu/check.py). If they
disagree, or later losses do, the script ends with 1. Each run is a process of its own, in alternation: Oddsmith, TRL
with its defaults, TRL at its best (no gradient checkpointing), Oddsmith with checkpointing, Oddsmith, ... Where a step
of TRL does not fit, it gets micro-batches of half the pairs. Where TRL is not installed, plain PyTorch computes what it
does (on_gpu/plain.py). Results are written after every run, so that a measurement that is cut short leaves them.

Without a GPU all of this runs on the CPU at a toy size, in a minute, with figures that mean nothing.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

for name, value in (("HF_HUB_OFFLINE", "1"), ("TRL_EXPERIMENTAL_SILENCE", "1"), ("TOKENIZERS_PARALLELISM", "false")):
    os.environ.setdefault(name, value)

import torch
from on_gpu.report import LABELS, WARM_UP_STEPS, differences, is_ours, markdown, results_file, summarise
from on_gpu.works import FEW_LAYERS, TOY, WORKS, count_step, make_rows, multiplied_parameters
from versus_trl import commit, machine, say

from oddsmith.system.precision import emulates_bf16

FOLDER = Path(__file__).parent
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "triton", "flash_attn")
# On a GPU, and at toy size: most tokens of a sequence, share of UltraFeedback's lengths, size of the timed product.
SIZES = {"cuda": (2048, 1.0, 8192), "cpu": (96, 1 / 16, 256)}
SECONDS_A_RUN = 540
OUT_OF_MEMORY = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--work", choices=WORKS, nargs="+", default=list(WORKS), help="only these")
    parser.add_argument("--only", choices=LABELS, nargs="+", default=list(LABELS), help="run only these trainers")
    parser.add_argument("--steps", type=int, default=6, help=f"timed steps, after {WARM_UP_STEPS} to warm up")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each trainer")
    parser.add_argument("--pairs", type=int, help="pairs of a step, instead of the work's")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no run that may end later")
    parser.add_argument("--quick", action="store_true", help="3 timed steps, once")
    parser.add_argument("--plain", action="store_true", help="against plain PyTorch even where TRL is installed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print the whole measurement as JSON instead of tables")
    parser.add_argument("--output", type=Path, help="write a results file")
    parsed = parser.parse_args(words)
    if parsed.quick:
        parsed.steps, parsed.repeats = 3, 1
    if parsed.steps < 1 or parsed.repeats < 1:
        parser.error("--steps and --repeats start at 1")
    return parsed


def process(module: str, request: dict[str, Any], answer: Path) -> dict[str, Any]:
    """Run a module of on_gpu/ in a separate process, and return its answer, ``{"failed": reason}`` if it has none.

    On the CPU, where the toy run measures nothing useful, run it in this process: that is faster than starting Python.
    """
    answer.unlink(missing_ok=True)
    request_file = answer.with_suffix(".request.json")
    request_file.write_text(json.dumps(request), encoding="utf-8")
    if request["device"] == "cpu":
        importlib.import_module(f"on_gpu.{module}").main(str(request_file), str(answer))
        return json.loads(answer.read_text(encoding="utf-8"))
    paths = filter(None, (str(FOLDER), os.environ.get("PYTHONPATH")))
    command = [sys.executable, "-W", "ignore", "-m", f"on_gpu.{module}", str(request_file), str(answer)]
    try:
        done = subprocess.run(
            command,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            timeout=SECONDS_A_RUN,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {SECONDS_A_RUN} s"}
    if answer.is_file():
        return json.loads(answer.read_text(encoding="utf-8"))
    say(done.stderr[-3000:])
    if done.returncode in (-9, 137) or any(words in done.stderr for words in OUT_OF_MEMORY):
        return {"failed": "out of memory"}
    return {"failed": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:200]}


def request_of(name: str, args: argparse.Namespace, device: str, folder: Path) -> dict[str, Any]:
    """Write the rows of a work into a folder, and return the request for check.py and worker.py.

    ``trainer`` and ``micro_batch`` are added later.
    """
    work = WORKS[name]
    bf16 = device == "cuda" or not emulates_bf16()  # a CPU that emulates it trains in float32 here, but not with TRL
    max_length, scale, matrix_size = SIZES[device]
    shape = work.shape if device == "cuda" else work.shape | TOY
    pairs, steps = args.pairs or work.pairs, WARM_UP_STEPS + args.steps
    rows = make_rows(pairs * steps, vocabulary=shape["vocab_size"], max_length=max_length, scale=scale, seed=args.seed)
    rows_file = folder / f"{name}.rows.json"
    rows_file.write_text(json.dumps(rows), encoding="utf-8")
    return {
        **work._asdict(),
        "weights": work.weights if bf16 else "float32",
        "bf16": bf16,
        "shape": shape,
        "small_shape": work.shape | FEW_LAYERS if device == "cuda" else shape,
        "pairs": pairs,
        "steps": steps,
        "max_length": max_length,
        "scale": scale,
        "matrix_size": matrix_size,
        "device": device,
        "rows": str(rows_file),
        "seed": args.seed,
        "plain": args.plain,
    }


def describe_work(name: str, request: dict[str, Any]) -> dict[str, Any]:
    """Return the work's part of the document, before anything has run."""
    rows = json.loads(Path(request["rows"]).read_text(encoding="utf-8"))
    pairs, parameters = request["pairs"], multiplied_parameters(request["shape"])
    starts = range(0, len(rows), pairs)
    return {
        "name": name,
        **{key: request[key] for key in ("adapter", "weights", "bf16", "pairs", "max_length")},
        "parameters": parameters,
        "operations_per_token": (4 if request["adapter"] else 6) * parameters,
        "counts": [count_step(rows[start : start + pairs], request["shape"]["vocab_size"]) for start in starts],
        "checks": [],
        "runs": [],
        "trainers": {},
        "differences": [],
    }


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Compare both paths of each work, then run its trainers in alternation; return the document of report.py."""
    document = describe(args)
    ends_s = time.monotonic() + 60 * args.minutes
    for name in args.work:
        request = request_of(name, args, "cuda" if document["device"] else "cpu", folder)
        work = describe_work(name, request)
        document["works"].append(work)
        say(f"{name}: packed rows against padded batches")
        before = process("check", request, folder / "check.json")
        work["checks"] = before.get("checks", [])
        if "failed" in before or not all(check["agrees"] for check in work["checks"]):
            work["differences"] = [before.get("failed", "packed rows and padded batches disagree; nothing was timed")]
            continue
        document |= {"operations_per_second": before["operations_per_second"], "matrix_size": request["matrix_size"]}
        for run in runs(args, request, folder / "worker.json", ends_s):
            work["runs"].append(run)
            work["trainers"] = summarise(work, document["operations_per_second"])
            work["differences"] = differences(work)
            if args.output:
                args.output.write_text(results_file(document), encoding="utf-8")
    return document


def runs(args: argparse.Namespace, request: dict[str, Any], answer: Path, ends_s: float) -> Iterator[dict[str, Any]]:
    """Run the trainers in alternation, each with the longest micro-batches that fit.

    Args:
        args: The command line.
        request: The work's request.
        answer: File that the processes write.
        ends_s: No run starts that may end later than this (monotonic clock), judged by the longest run so far.

    Yields:
        Answers of worker.py, with ``trainer`` and ``micro_batch``.
    """
    micro_batch = dict.fromkeys(args.only, request["pairs"])
    waiting, longest_s = args.only * args.repeats, 0.0
    while waiting:
        started_s = time.monotonic()
        if started_s + longest_s > ends_s:
            say(f"no time left for {', '.join(waiting)}")
            return
        trainer = waiting.pop(0)
        asked = {"trainer": trainer, "micro_batch": micro_batch[trainer]}
        run = process("worker", request | asked, answer) | asked
        longest_s = max(longest_s, time.monotonic() - started_s)
        say(f"{LABELS[trainer]}, {micro_batch[trainer]} pairs: {in_short(run)}")
        if run.get("failed") == "out of memory" and micro_batch[trainer] > 1 and not is_ours(trainer):
            micro_batch[trainer] //= 2
            waiting.insert(0, trainer)
        else:
            yield run


def in_short(run: dict[str, Any]) -> str:
    """Summarise a run in one line."""
    return run.get("failed") or f"{' '.join(f'{step_s:.3g}' for step_s in run['step_s'])} s, {run['layout']}"


def describe(args: argparse.Namespace) -> dict[str, Any]:
    """Return the document's part about the machine, before anything has run."""
    versions = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "command": " ".join(["python benchmarks/gpu.py", *(Path(word).name for word in sys.argv[1:])]),
        "date": date.today().isoformat(),
        "device": device_name(),
        "cores": os.cpu_count(),
        "versions": versions,
        "commit": commit(),
        "works": [],
    }


def device_name() -> str:
    """Return the GPU's name without opening the GPU, where this process would hold memory; empty without a GPU."""
    return (machine()["device"] or "NVIDIA GPU") if torch.cuda.is_available() else ""


def main() -> int:
    """Measure, print, write."""
    args = arguments()
    with tempfile.TemporaryDirectory() as folder:
        document = measure(args, Path(folder))
    print(json.dumps(document, indent=1) if args.json else markdown(document))
    return 1 if any(work["differences"] for work in document["works"]) else 0


if __name__ == "__main__":
    sys.exit(main())
