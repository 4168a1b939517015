"""From prompts alone to a better model: make pairs by a rule, check them, take advice, train, and ask unseen prompts.

    python benchmarks/from_prompts.py --output benchmarks/results/from_prompts.md     (about half an hour on two cores)
    python benchmarks/from_prompts.py --prompts 24 --samples 2 --tokens 48 --asked 8  (a rehearsal)

The model is SmolLM2-135M-Instruct. Each step is the command that a user would give, with nothing else set. The rule
asks for answers of at most 60 words that end with a full stop, which this model seldom gives. Prompts are those of the
built-in pairs for training and others of a few templates; those of the built-in pairs for testing are asked at the end,
greedily: what share of the answers meets the rule before and after.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from oddsmith.data.builtin import demo_pairs
from oddsmith.making.answers.drawing import Drawing
from oddsmith.making.answers.local import open_model
from oddsmith.making.judges.opening import open_judge
from oddsmith.making.questions import key_of
from oddsmith.making.records import Asked, Question

MODEL = "builtin:smollm2-135m-instruct"
RULE = "max_words: 60\nregex: '[.!?]$'\n"
THINGS = (
    "a balloon", "a basket", "a bell", "a boat", "a bridge", "a brush", "a button", "a candle", "a carpet",
    "a castle", "a clock", "a cloud", "a compass", "a desert", "a dictionary", "a door", "a drum", "a feather",
    "a fence", "a flag", "a forest", "a fountain", "a garden", "a glacier", "a guitar", "a hammer", "a harbour",
    "an island", "a jacket", "a kettle", "a kite", "a ladder", "a lamp", "a lemon", "a letter", "a lighthouse",
    "a map", "a market", "a meadow", "a mirror", "a mountain", "an oven", "an orchestra", "a paintbrush",
    "a pencil", "a pillow", "a puzzle", "a quilt", "a rainbow", "a river", "a sailing boat", "a school", "a shadow",
    "a shell", "a shelter", "a shoe", "a snowman", "a song", "a spoon", "a staircase", "a statue", "a suitcase",
    "a telescope", "a tent", "a theatre", "a thunderstorm", "a ticket", "a towel", "a tower", "a train",
    "a tree house", "a tunnel", "an umbrella", "a valley", "a vegetable", "a violin", "a volcano", "a waterfall",
    "a whistle", "a window", "a workshop", "a zebra",
)  # fmt: skip
ASKS = (
    "What is {}?",
    "Why do people like {}?",
    "Explain to a child what {} is.",
    "Tell me something about {}.",
    "How would you describe {}?",
)


def prompts_for_training(count: int) -> list[str]:
    """Return so many different prompts, none of which is asked at the end."""
    built_in = [row["prompt"][-1]["content"] for row in demo_pairs("train")]
    made = [ask.format(thing) for thing in THINGS for ask in ASKS]
    asked_at_the_end = {row["prompt"][-1]["content"] for row in demo_pairs("heldout")}
    return [prompt for prompt in dict.fromkeys([*built_in, *made]) if prompt not in asked_at_the_end][:count]


def command(place: Path, *words: object) -> tuple[dict[str, Any], float]:
    """Run a command of Oddsmith in a folder; return its document and the seconds that it took."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-P", "-m", "oddsmith", *map(str, words), "--json"],
        cwd=place,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode not in (0, 3):  # 3: a check has found something
        sys.exit(f"{' '.join(map(str, words))} ended with {done.returncode}")
    return json.loads(done.stdout), time.perf_counter() - start


def meeting(model: str, rules: Path, most: int, tokens: int) -> tuple[float, float, str]:
    """Return what share of the answers to unseen prompts meets all checks, their mean words, and the first answer."""
    rows = [row["prompt"] for row in demo_pairs("heldout")][:most]
    questions = [Question(key_of(prompt), prompt) for prompt in rows]
    drawing = Drawing(samples=1, temperature=0, max_new_tokens=tokens)
    answers = {answer.question: answer for answer in open_model(model, drawing, 32).answers(questions, set())}
    judge = open_judge(f"rule:{rules}")
    asked = [Asked(question, [answers[question.key]]) for question in questions]
    met = [score.value == 1 for _, said in judge.score(asked) for score in said.values()]
    texts = [answers[question.key].text for question in questions]
    return sum(met) / len(met), sum(len(text.split()) for text in texts) / len(texts), texts[0]


def main() -> None:
    """Run all steps, and print or write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--asked", type=int, default=64, help="prompts of the third set that are asked at the end")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        rules = place / "rules.yaml"
        rules.write_text(RULE, encoding="utf-8")
        prompts = prompts_for_training(given.prompts)
        (place / "prompts.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")
        sizes = ("--samples", given.samples, "--max-new-tokens", given.tokens)
        make = ("data", "make", "prompts.txt", "--model", MODEL, "--judge", "rule:rules.yaml", *sizes)
        made, make_s = command(place, *make, "--output", "pairs.jsonl")
        print(json.dumps(made)[:2000], file=sys.stderr)
        checked, check_s = command(place, "data", "check", "pairs.jsonl", "--model", MODEL)
        _, advise_s = command(place, "advise", MODEL, "pairs.jsonl")
        recipe = (place / "recipe.yaml").read_text(encoding="utf-8")
        _, train_s = command(place, "train", "recipe.yaml", "--output-dir", "tuned")
        before = meeting(MODEL, rules, given.asked, given.tokens)
        after = meeting(str(place / "tuned"), rules, given.asked, given.tokens)
        pairs = len((place / "pairs.jsonl").read_text(encoding="utf-8").splitlines())
    settings = [line for line in recipe.splitlines() if line and not line.startswith("#")]
    lines += [
        "# `python benchmarks/from_prompts.py`",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.processor() or platform.machine()}, "
        f"{len(os.sched_getaffinity(0))} cores. {len(prompts):,} prompts, {given.samples} answers to each of at most"
        f" {given.tokens} tokens; {given.asked} unseen prompts.",
        "",
        "| step | seconds | outcome |",
        "|---|---|---|",
        f"| data make | {make_s:,.0f} | {pairs:,} pairs |",
        f"| data check | {check_s:,.0f} | {checked.get('verdict', '')} |",
        f"| advise | {advise_s:,.0f} | `recipe.yaml` |",
        f"| train | {train_s:,.0f} | |",
        "",
        "| answers to unseen prompts, greedy | before | after |",
        "|---|---|---|",
        f"| meet the rule | {before[0]:.0%} | {after[0]:.0%} |",
        f"| words, on average | {before[1]:.0f} | {after[1]:.0f} |",
        "",
        "The first of them, before and after:",
        "",
        *(f"> {' '.join(text.split())}\n" for text in (before[2], after[2])),
        "The rule is `max_words: 60` and `regex: '[.!?]$'`; the recipe that was advised:",
        "",
        "```yaml",
        *settings,
        "```",
    ]
    report = "\n".join(lines) + "\n"
    if given.output:
        given.output.write_text(report, encoding="utf-8")
    print(report)


if __name__ == "__main__":
    main()
