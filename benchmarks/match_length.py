"""What matching lengths does to pairs: how much longer chosen answers are, and what it costs in the scores' difference.

    python benchmarks/match_length.py [PROMPTS] > benchmarks/results/match_length.md

Four answers of 5 to 400 characters to each prompt. The judge likes length: a score is characters / 100 plus noise of
standard deviation 1.
"""

from __future__ import annotations

import random
import sys
import time
from statistics import fmean

from oddsmith.making.combining import Judged
from oddsmith.making.pairing import PAIRINGS, PairingRules, pair_up
from oddsmith.making.records import Answer, Question, Score


def judged(prompts: int) -> list[Judged]:
    """Made-up answers with scores."""
    rng = random.Random(0)
    sets = []
    for number in range(prompts):
        question = Question(str(number), [{"role": "user", "content": f"Question {number}"}])
        sizes = [rng.randint(5, 400) for _ in range(4)]
        answers = [Answer(question.key, "m", place, f"{place}" * size) for place, size in enumerate(sizes)]
        sets.append(Judged(question, answers, {"j": [Score(size / 100 + rng.gauss(0, 1)) for size in sizes]}))
    return sets


def main() -> None:
    """Print a table in Markdown."""
    sets = judged(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
    print("# Matching lengths\n")
    print(f"`python benchmarks/match_length.py {len(sets)}`: {len(sets):,} prompts of four answers\n")
    print("| pairing | lengths matched | pairs | Cohen's d of the lengths | mean gap of the scores | seconds |")
    print("|---|---|---|---|---|---|")
    for pairing in PAIRINGS:
        for match_length in (False, True):
            started = time.perf_counter()
            paired = pair_up(sets, {"j": 1.0}, PairingRules(pairing, match_length=match_length))
            took = time.perf_counter() - started
            gap = fmean(pair.gap for pair in paired.pairs)
            figures = f"{len(paired.pairs):,} | {paired.effect_after:+.2f} | {gap:.2f} | {took:.1f}"
            print(f"| {pairing} | {'yes' if match_length else 'no'} | {figures} |")


if __name__ == "__main__":
    main()
