"""Oddsmith against TRL 1.16 side by side: speed, memory, and the same losses.

python benchmarks/versus_trl.py [--work NAME] [--data FILE.jsonl] [--steps N] [--repeats N] [--json] [--output FILE.md]
python benchmarks/versus_trl.py --from A.json B.json --output FILE.md --plot FILE.svg

Each run is a process of its own, in alternation: Oddsmith, TRL with its defaults, TRL at its best, TRL a pair at a
time, Oddsmith, ... The same is: rows, their order and tokens, initial weights (the same seed draws the same LoRA),
type of the weights, bf16 autocast, AdamW, learning rate and, but for the last, the micro-batch, which is the whole
step. Rows that either trainer cuts, drops or turns into other tokens are left out (versus/rows.py). Exits with 1 if
tokens, initial weights, losses or the first gradient norm differ by more than rounding (versus/report.py).

| work | pairs | what is trained | precision | meant for |
|---|---|---|---|---|
| dpo-lora | 4 a step | LoRA r=16, all linear, bf16 base | bf16 | dpo_en_demo (LLaMA-Factory) |
| hh-lora | 8 a step | LoRA r=16, all linear, bf16 base | bf16 | hh-rlhf, helpful-base, test |
| dpo-full | 4 a step | all weights, float32 | bf16 | dpo_en_demo |
| dpo-lora-fp32 | 4 a step | LoRA r=16, all linear, float32 base | float32 | dpo_en_demo |

Without --data the pairs are the short ones that come with Oddsmith. TRL's best: no gradient checkpointing, and under
LoRA a base that is bf16 already (with one in float32, which autocast casts in every product, TRL took 1 to 13% more
processor time and a seventh more memory). A pair at a time pads less and needs less memory, but is the mean of the
pairs' means, so its losses are not compared.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from versus.plot import plot
from versus.report import LABELS, disagreements, markdown, results_file, summarise, verdict

FOLDER = Path(__file__).parent
MODEL, PAIRS = "builtin:smollm2-135m-instruct", "builtin:house-style"
PACKAGES = ("torch", "transformers", "trl", "peft")


class Work(NamedTuple):
    """What is trained, on how many pairs a step."""

    pairs: int
    adapter: bool
    bf16: bool
    weights: str
    learning_rate: float


WORKS = {
    "dpo-lora": Work(4, adapter=True, bf16=True, weights="bfloat16", learning_rate=1e-4),
    "hh-lora": Work(8, adapter=True, bf16=True, weights="bfloat16", learning_rate=1e-4),
    "dpo-full": Work(4, adapter=False, bf16=True, weights="float32", learning_rate=1e-5),
    "dpo-lora-fp32": Work(4, adapter=True, bf16=False, weights="float32", learning_rate=1e-4),
}


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--work", choices=WORKS, default="dpo-lora")
    parser.add_argument("--data", default=PAIRS, help="pairs: a file in any format that Oddsmith reads")
    parser.add_argument("--model", default=MODEL, help="a model folder or builtin:NAME")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps, the first of which is not timed")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each trainer")
    parser.add_argument("--only", choices=LABELS, nargs="+", default=list(LABELS), help="run these alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print the whole measurement as JSON instead of tables")
    parser.add_argument("--output", type=Path, help="write a results file")
    parser.add_argument("--plot", type=Path, help="draw speed and memory into an .svg file")
    parser.add_argument("--from", dest="earlier", type=Path, nargs="+", default=[], help="measured before with --json")
    parsed = parser.parse_args(words)
    if parsed.steps < 2 or parsed.repeats < 1:
        parser.error("--steps counts the first, which is not timed: give at least 2, and at least one of --repeats")
    return parsed


def process(module: str, request: dict[str, Any], answer: Path) -> dict[str, Any]:
    """Run a module of versus/ in a process of its own, and read what it wrote.

    Args:
        module: Name of the module.
        request: What it is asked for.
        answer: Where it writes.

    Returns:
        Its answer; ``{"failed": "out of memory"}`` if the system or CUDA stopped a worker for that.

    Raises:
        SystemExit: It failed for another reason.
    """
    request_file = answer.with_suffix(".request.json")
    request_file.write_text(json.dumps(request), encoding="utf-8")
    environment = {
        "HF_HUB_OFFLINE": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(FOLDER), os.environ.get("PYTHONPATH")))),
    }
    command = [sys.executable, "-W", "ignore", "-m", f"versus.{module}", str(request_file), str(answer)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode == 0:
        return json.loads(answer.read_text(encoding="utf-8"))
    if module == "worker" and (done.returncode in (-9, 137) or "out of memory" in done.stderr):
        return {"failed": "out of memory"}
    sys.exit(f"versus.{module} failed:\n{done.stderr[-4000:]}")


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Choose the rows, run the trainers in alternation, measure the floor.

    Args:
        args: The command line.
        folder: Where the processes leave their answers.

    Returns:
        The document that report.py describes.
    """
    work = WORKS[args.work]
    request = {
        **work._asdict(),
        "model": args.model,
        "steps": args.steps,
        "max_length": args.max_length,
        "beta": 0.1,
        "seed": args.seed,
    }
    rows_file = folder / "rows.json"
    rows = process("rows", request | {"data": args.data}, rows_file)
    runs = []
    for repeat in range(args.repeats):
        for trainer in args.only:
            if any("failed" in run for run in runs if run["trainer"] == trainer):
                continue
            say(f"{LABELS[trainer]}, repeat {repeat + 1} of {args.repeats}")
            answer = folder / f"{trainer}-{repeat}.json"
            run = process("worker", request | {"trainer": trainer, "rows": str(rows_file)}, answer)
            runs.append(run | {"trainer": trainer})
            say(f"  {run.get('failed') or ' '.join(f'{step_s:.2f}' for step_s in run['step_s'])} s")
    differences = disagreements(runs, bf16=work.bf16)
    return {
        "command": " ".join(["python benchmarks/versus_trl.py", *(Path(word).name for word in sys.argv[1:])]),
        "date": date.today().isoformat(),
        "machine": machine(),
        "versions": {name: version(name) for name in PACKAGES} | {"Python": platform.python_version()},
        "commit": commit(),
        "work": request | {"name": args.work},
        "data": Path(args.data).name,
        "repeats": args.repeats,
        "left_out": rows["left_out"],
        "step_counts": rows["steps"],
        "floor": process("floor", request | {"step_counts": rows["steps"]}, folder / "floor.json"),
        "trainers": summarise(runs, work.pairs),
        "differences": differences,
        "verdict": verdict(runs, differences, bf16=work.bf16),
        "runs": runs,
    }


def machine() -> dict[str, Any]:
    """What this runs on: CPU, cores, memory, NVIDIA device."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line for line in info.read_text(encoding="utf-8").splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        device = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip().replace("\n", ", ")
    except (OSError, subprocess.CalledProcessError):
        device = ""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu": cpu, "cores": os.cpu_count(), "memory_bytes": memory_bytes, "device": device}


def commit() -> str:
    """The commit that was measured, and whether files differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(FOLDER), *words], capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "../src", ".")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + (" with changes" if changed else "")


def say(text: str) -> None:
    """Progress, out of the way of what is printed as the result."""
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Measure, or read what was measured; print, write, draw."""
    args = arguments()
    if args.earlier:
        documents = [json.loads(file.read_text(encoding="utf-8")) for file in args.earlier]
    else:
        with tempfile.TemporaryDirectory() as folder:
            documents = [measure(args, Path(folder))]
    if args.json:
        print(json.dumps(documents[0] if len(documents) == 1 else documents, indent=1))
    else:
        print("\n".join(markdown(document) for document in documents))
    if args.output:
        args.output.write_text(results_file(documents), encoding="utf-8")
    if args.plot:
        args.plot.write_text(plot(documents), encoding="utf-8")
    return 1 if any(document["differences"] for document in documents) else 0


if __name__ == "__main__":
    sys.exit(main())
