"""Compare the memory that ``oddsmith advise`` shows for each way to train with the peaks of real runs on this CPU.

    python benchmarks/advise_memory.py --output benchmarks/results/advise_memory.md
    python benchmarks/advise_memory.py --cases lora

Each case is advised for SmolLM2 135M on the pairs of the demo, and the recipe that is written is trained for two steps
by ``plan_memory.py``, whose docstring says how a peak is measured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import plan_memory

# Name -> flags of the advice; all are for this machine's CPU, without dropout, which keeps a mask of each layer.
CASES: dict[str, list[str]] = {
    "full": ["--no-use-peft"],
    "full-checkpointing": ["--no-use-peft", "--gradient-checkpointing"],
    "lora": ["--use-peft"],
    "lora-checkpointing": ["--use-peft", "--gradient-checkpointing"],
}
GB = 1e9


def compared(case: str, folder: Path, as_users_run: bool) -> str:
    """Return the line of a case."""
    output = folder / "advised.yaml"
    command = [
        sys.executable,
        "-m",
        "oddsmith.cli.main",
        "advise",
        plan_memory.MODEL,
        "builtin:house-style",
        "--use-cpu",
    ]
    command += [*CASES[case], "--lora-dropout", "0", "--output", str(output), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise SystemExit(done.stderr)
    advice = json.loads(done.stdout)
    predicted = advice["ways"][advice["training"]]["bytes"]["sum"]
    # Two steps, in the second of which the states of the optimizer are there; no evaluation, which takes less.
    settings = yaml.safe_load(output.read_text(encoding="utf-8"))
    short = {"max_steps": 2, "save_strategy": "no", "eval_strategy": "no", "load_best_model_at_end": False}
    (folder / "recipe.json").write_text(json.dumps(settings | short), encoding="utf-8")
    plan_memory.CASES[case] = (1, {"use_cpu": True})
    peak = plan_memory.measured(case, folder, as_users_run)
    return f"| {case} | {predicted / GB:.2f} | {peak / GB:.2f} | {predicted / peak:.2f} |"


def main() -> None:
    """Compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--as-users-run", action="store_true", help="with the C library's own habits")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    how = " --as-users-run" if given.as_users_run else ""
    lines = [f"# `python benchmarks/advise_memory.py{how}`", "", f"{datetime.now(UTC):%Y-%m-%d}, GB.", ""]
    lines += ["| case | advised | measured | advised / measured |", "|---|--:|--:|--:|"]
    for case in given.cases:
        with tempfile.TemporaryDirectory() as name:
            lines.append(compared(case, Path(name), given.as_users_run))
        print(lines[-1], flush=True)
    if given.output:
        given.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
