"""Compare the memory that ``oddsmith plan`` predicts with the peaks of real processes, on this machine's CPU.

    python benchmarks/plan_memory.py --output benchmarks/results/plan_memory.md      all cases
    python benchmarks/plan_memory.py --cases full lora-checkpointing

Each case is a recipe for SmolLM2 135M, planned by the command, then trained for two steps in one or two processes. The
peak is the private memory of the second step, in which the states of the optimizer are there. FSDP2 and ZeRO take on
CPUs the road that they take on GPUs (``tests/distributed/gpu_road.py``).

The C library keeps freed blocks of up to 32 MB for itself, more or fewer of them. Processes run with
``MALLOC_MMAP_THRESHOLD_``, so that what is freed is freed; ``--as-users-run`` leaves that out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.distributed.kinds import KINDS
from tests.forked import free_port, rank_environment

MODEL = "builtin:smollm2-135m-instruct"
BASE = {
    "model_name_or_path": MODEL,
    "dataset_name": "builtin:house-style",
    "max_steps": 2,
    "per_device_train_batch_size": 8,
    "save_strategy": "no",
    "lora_dropout": 0.0,
}
LORA = {"use_peft": True}
# Name -> processes, and settings.
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "full": (1, {"use_cpu": True}),
    "full-float32": (1, {"use_cpu": True, "bf16": False}),
    "full-checkpointing": (1, {"use_cpu": True, "gradient_checkpointing": True}),
    "lora": (1, {"use_cpu": True, **LORA}),
    "lora-4bit": (1, {"use_cpu": True, **LORA, "load_in_4bit": True}),
    "lora-checkpointing": (1, {"use_cpu": True, **LORA, "gradient_checkpointing": True}),
    "ddp": (2, {"use_cpu": True}),
    "fsdp2": (2, KINDS["fsdp-full"]),
    "zero-2": (2, KINDS["zero-2"]),
    "zero-3": (2, KINDS["zero-3"]),
}
GB = 1e9
EVERY_S = 0.005
LIMIT_S = 900
THRESHOLD = {"MALLOC_MMAP_THRESHOLD_": str(128 << 10)}


class Peak(threading.Thread):
    """Keep the largest private memory of this process, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._process, self.bytes = psutil.Process(), 0

    def now(self) -> int:
        """Return the private memory now."""
        memory = self._process.memory_info()
        return memory.rss - memory.shared

    def run(self) -> None:
        """Look again and again."""
        while True:
            self.bytes = max(self.bytes, self.now())
            time.sleep(EVERY_S)


def train(recipe: str, folder: Path) -> None:
    """Train in this process, and write down the peak of the last step."""
    settings = json.loads(Path(recipe).read_text(encoding="utf-8"))
    if not settings.get("use_cpu"):
        from tests.distributed import gpu_road

        gpu_road.take()
    from transformers import TrainerCallback

    from oddsmith.cli.main import main
    from oddsmith.training.trainer import ORPOTrainer

    peak, found = Peak(), {}
    peak.start()

    class Watch(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            found["started_s"] = time.perf_counter()
            peak.bytes = peak.now()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            found["bytes"] = peak.bytes

    make = ORPOTrainer.__init__

    def watched(self: ORPOTrainer, *arguments: Any, **named: Any) -> None:
        make(self, *arguments, **named)
        self.add_callback(Watch)

    ORPOTrainer.__init__ = watched  # type: ignore[method-assign]
    try:
        main(["train", recipe, "--output-dir", str(folder / "run"), "--overwrite-output-dir"])
    except SystemExit as ended:
        found["code"] = ended.code
    (folder / f"rank-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(found), encoding="utf-8")


def measured(case: str, folder: Path, as_users_run: bool) -> int:
    """Train a case in its processes; return the peak of the rank that takes most."""
    processes, _ = CASES[case]
    port = free_port()
    started = []
    for rank in range(processes):
        variables = os.environ | rank_environment(rank, processes, port) | ({} if as_users_run else THRESHOLD)
        command = [sys.executable, __file__, "--train", str(folder / "recipe.json")]
        with (folder / f"log-{rank}").open("wb") as log:
            started.append(subprocess.Popen(command, env=variables, stdout=log, stderr=log, cwd=ROOT))
    for process in started:
        process.wait(LIMIT_S)
    peaks = []
    for rank in range(processes):
        found = json.loads((folder / f"rank-{rank}.json").read_text(encoding="utf-8"))
        if found.get("code"):
            raise SystemExit((folder / f"log-{rank}").read_text(encoding="utf-8")[-3000:])
        peaks.append(found["bytes"])
    return max(peaks)


def predicted(case: str, folder: Path) -> dict[str, Any]:
    """Return what the command predicts for a case."""
    processes, settings = CASES[case]
    (folder / "recipe.json").write_text(json.dumps(BASE | settings), encoding="utf-8")  # JSON is YAML
    command = [sys.executable, "-m", "oddsmith.cli.main", "plan", str(folder / "recipe.json"), "--json"]
    done = subprocess.run([*command, "--gpus", str(processes)], capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise SystemExit(done.stderr)
    return next(choice for choice in json.loads(done.stdout)["choices"] if choice["is_recipe"])["bytes"]


def rows(cases: list[str], as_users_run: bool) -> list[str]:
    """Return the table, a line as soon as its case is done."""
    parts = ("weights", "gradients", "optimizer", "exchange", "activations", "process")
    lines = [f"| case | processes | {' | '.join(parts)} | predicted | measured | predicted / measured |"]
    lines.append("|---|---|" + "--:|" * (len(parts) + 3))
    for case in cases:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            found = predicted(case, folder)
            peak = measured(case, folder, as_users_run)
        figures = " | ".join(f"{found[part] / GB:.2f}" for part in parts)
        lines.append(
            f"| {case} | {CASES[case][0]} | {figures} | {found['sum'] / GB:.2f} | {peak / GB:.2f}"
            f" | {found['sum'] / peak:.2f} |"
        )
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    """Compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--as-users-run", action="store_true", help="with the C library's own habits")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--train", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.train:
        train(given.train, Path(given.train).parent)
        return
    how = " --as-users-run" if given.as_users_run else ""
    lines = [f"# `python benchmarks/plan_memory.py{how}`", "", f"{datetime.now(UTC):%Y-%m-%d}, GB a rank.", ""]
    lines += rows(given.cases, given.as_users_run)
    if given.output:
        given.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
