"""Does the winner of `oddsmith tune` beat the recipe's own settings on pairs that neither training nor search has seen?

    python benchmarks/tune.py --output benchmarks/results/tune.md      (about ten minutes on two cores)
    python benchmarks/tune.py --toy                                    (a rehearsal, two minutes)

1. search      oddsmith tune, on the built-in pairs for training: a fifth of them is held out to judge probes
2. train       the recipe's own settings and those of the best probe, on all pairs for training, with three new seeds
3. third split the built-in pairs for testing, which were never looked at: costs of each pair, as in
               src/oddsmith/tuning/objective.py, paired by pair and seed

The best probe is compared even where the search calls its difference noise, so that this can be checked, too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

MODEL, PAIRS = "builtin:smollm2-135m-instruct", "builtin:house-style"
# The demo's adapter and lengths (src/oddsmith/cli/demo.py), with usual settings for what is searched, and a short run.
RECIPE: dict[str, Any] = {
    "model_name_or_path": MODEL,
    "dataset_name": PAIRS,
    "use_peft": True,
    "lora_dropout": 0.0,
    "lora_target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "max_length": 96,
    "learning_rate": 2e-4,
    "beta": 0.1,
    "per_device_train_batch_size": 4,
    "max_steps": 24,
    "warmup_steps": 3,
    "lr_scheduler_type": "cosine",
    "seed": 7,
}
SEARCH = ("learning_rate=5e-5:2e-3:log", "beta=0.05,0.1,0.25,0.5")
SEEDS = (101, 102, 103)
TRIALS = 8
COMMAND = [sys.executable, "-P", "-m", "oddsmith"]


def run(words: Sequence[object], threads: int) -> dict[str, Any]:
    """Run a command of Oddsmith with ``--json``; return its document."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [*COMMAND, *map(str, words), "--json"], stdout=subprocess.PIPE, text=True, env=environment, check=False
    )
    if done.returncode not in (0, 3):
        sys.exit(f"{' '.join(map(str, words))} ended with {done.returncode}")
    return json.loads(done.stdout)


def third_split(folder: Path, values: dict[str, Any], seed: int) -> list[float]:
    """Train settings on all training pairs with a seed; return the costs of the pairs of the third split."""
    import torch

    from oddsmith.cli.commands.train.recipe import trainer_from_recipe
    from oddsmith.loss import pair_log_odds
    from oddsmith.tuning.objective import pair_costs

    torch.set_num_threads(1)
    flags = [word for name, value in (values | {"seed": seed}).items() for word in (f"--{name}", str(value))]
    quiet = ("--save-strategy", "no", "--report-to", "none", "--disable-tqdm", "true")
    evaluated = ("--eval-strategy", "steps", "--eval-steps", "1000000")
    words = (str(folder / "recipe.yaml"), *flags, *quiet, *evaluated)
    trainer = trainer_from_recipe(*words, "--output-dir", str(folder / "-".join(map(str, (*values.values(), seed)))))
    trainer.train()
    trainer.evaluate()
    logps_P2 = trainer.evaluation_meter.pairs(list).logps_P2.double()
    return pair_costs(pair_log_odds(logps_P2[:, 0], logps_P2[:, 1]).tolist(), logps_P2[:, 0].tolist()).tolist()


def measure_apart(folder: Path, values: dict[str, Any], seed: int) -> list[float]:
    """Do that in a process of its own."""
    words = [sys.executable, __file__, "--train", json.dumps([str(folder), values, seed])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def report(search: dict[str, Any], costs: dict[str, np.ndarray], seconds: dict[str, float], args: Any) -> str:
    """Return the result as a page."""
    from oddsmith.system.machine import processor_name
    from oddsmith.tuning.objective import paired_interval
    from oddsmith.tuning.verdict import interval_text

    own, best = search["probes"][0]["values"], search["best"]
    differences_SP = costs["own"] - costs["best"]
    over_all = paired_interval(differences_SP.mean(axis=0))
    rows = [
        f"| {seed} | {costs['own'][number].mean():.3f} | {costs['best'][number].mean():.3f} |"
        f" {interval_text(paired_interval(differences_SP[number]))} |"
        for number, seed in enumerate(args.seeds)
    ]
    answer = (
        "better there, too"
        if over_all.is_above_zero
        else "worse there"
        if over_all.is_below_zero
        else "not told from noise there"
    )
    probes = [
        f"| {one['name']} | {one['values']['learning_rate']:.3g} | {one['values']['beta']} | {one['state']} |"
        f" {one['cost']:.3f} | {interval_of(one['gain'])} | {one['verdict']} |"
        for one in (*search["probes"], *search["again"])
    ]
    command = f"python benchmarks/tune.py{' --toy' if args.toy else ''}"
    return "\n".join(
        [
            "# `oddsmith tune` on the built-in pairs",
            "",
            f"{datetime.now(UTC):%Y-%m-%d}, {len(os.sched_getaffinity(0))} cores of {processor_name()}, `{command}`:"
            f" {seconds['search'] / 60:.1f} min for the search, {seconds['train'] / 60:.1f} for the trainings.",
            f"SmolLM2-135M-Instruct, LoRA on attention, {args.steps} steps of {RECIPE['per_device_train_batch_size']}"
            " pairs, in a probe as in a training.",
            "",
            *search["words"],
            "",
            "| probe | learning rate | beta | | cost | gain | diagnosis |",
            "|---|--:|--:|---|--:|---|---|",
            *probes,
            "",
            "## The third split",
            "",
            f"The best probe, learning rate {best['learning_rate']:.3g} and beta {best['beta']}, against the recipe's"
            f" own {own['learning_rate']:.3g} and {own['beta']}: trained anew on all training pairs,"
            f" {len(args.seeds)} seeds; {differences_SP.shape[1]} pairs that neither training nor search has seen."
            " Costs in nats a pair.",
            "",
            "| seed | own settings | best probe | gain, 95% over the pairs |",
            "|---|--:|--:|---|",
            *rows,
            f"| mean | {costs['own'].mean():.3f} | {costs['best'].mean():.3f} | {interval_text(over_all)} |",
            "",
            f"Over the seeds the gain spreads by {differences_SP.mean(axis=1).std(ddof=1):.3f} (standard deviation)."
            f" **The best probe is {answer}.** The search said: {search['outcome']}.",
            "",
        ]
    )


def interval_of(gain: dict[str, float] | None) -> str:
    """Return a gain of the document as text."""
    from oddsmith.tuning.objective import Interval
    from oddsmith.tuning.verdict import interval_text

    if gain is None or None in gain.values():
        return "-"
    return interval_text(Interval(**gain))


def main() -> None:
    """Search, train, compare, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--toy", action="store_true", help="three probes and two seeds of ten steps of two pairs")
    parser.add_argument("--train", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.train:
        folder, values, seed = json.loads(args.train)
        print(json.dumps(third_split(Path(folder), values, seed)))
        return
    args.steps, args.trials, args.seeds = RECIPE["max_steps"], TRIALS, SEEDS
    recipe = dict(RECIPE)
    if args.toy:
        args.steps, args.trials, args.seeds = 10, 3, SEEDS[:2]
        recipe |= {"max_steps": 10, "per_device_train_batch_size": 2, "max_length": 48}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = "".join(f"{key}: {json.dumps(value)}\n" for key, value in recipe.items())
        (folder / "recipe.yaml").write_text(text, encoding="utf-8")
        searched = [word for one in SEARCH for word in ("--search", one)]
        words = ["tune", folder / "recipe.yaml", *searched, "--trials", args.trials, "--output", folder / "tune"]
        started_at = time.monotonic()
        search = run([*words, "--steps", args.steps], threads=len(os.sched_getaffinity(0)))
        searched_at = time.monotonic()
        settings = {"own": search["probes"][0]["values"], "best": search["best"]}
        if settings["best"] in (None, settings["own"]):
            sys.exit("the recipe's own settings had the lowest cost: nothing to compare\n" + "\n".join(search["words"]))
        jobs = [(which, seed) for seed in args.seeds for which in settings]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # a core each
            done = list(pool.map(lambda job: measure_apart(folder, settings[job[0]], job[1]), jobs))
        ended_at = time.monotonic()
    costs = {
        which: np.array([one for job, one in zip(jobs, done, strict=True) if job[0] == which]) for which in settings
    }
    page = report(search, costs, {"search": searched_at - started_at, "train": ended_at - searched_at}, args)
    print(page)
    if args.output is not None:
        args.output.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
