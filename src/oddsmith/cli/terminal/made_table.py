"""Print what ``oddsmith data make`` made: counts, why prompts gave no pair, the scores, the verdict of the checks."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from rich.text import Text

from ...system.words import counted
from .console import stdout_console
from .data_table import STYLES

if TYPE_CHECKING:
    from rich.console import Console

    from ...data.checks.survey import Survey
    from ...making.making import Counts
    from ...making.pairing import Paired
    from ...making.questions import Questions

BINS, BAR = 10, 40  # of the histogram: rows, and characters of the longest bar
BLOCKS = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True)
class Made:
    """What was made."""

    output: str
    questions: Questions
    counts: Counts
    paired: Paired
    scores: Sequence[float]  # of all answers that have one
    judges: Mapping[str, Mapping[str, int]]  # what came up while each judge scored
    checked: Survey

    @property
    def gaps(self) -> list[float]:
        """Return by how much the scores of each pair differ."""
        return [pair.gap for pair in self.paired.pairs]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        paired = self.paired
        return {
            "prompts": len(self.questions.asked),
            "repeated_prompts": self.questions.repeated,
            "follow_ups_left_out": self.questions.follow_ups,
            "answers": asdict(self.counts),
            "pairs": len(paired.pairs),
            "dropped_prompts": dict(paired.dropped),
            "left_out_answers": dict(paired.left_out),
            "margin": {"mean": fmean(self.gaps), "median": median(self.gaps)},
            "length_effect": {"before": paired.effect_before, "after": paired.effect_after},
            "judges": {name: dict(counts) for name, counts in self.judges.items()},
            "histogram": [{"from": low, "to": high, "answers": n} for low, high, n in histogram(self.scores)],
            "verdict": self.checked.verdict,
            "findings": {finding.check: finding.verdict for finding in self.checked.findings},
        }


def histogram(values: Sequence[float]) -> list[tuple[float, float, int]]:
    """Return the bounds of each bin and how many values are in it; few different values are a bin each."""
    distinct = Counter(values)
    if len(distinct) <= BINS:
        return [(value, value, distinct[value]) for value in sorted(distinct)]
    low, high = min(values), max(values)
    counts = [0] * BINS
    for value in values:
        counts[min(BINS - 1, int((value - low) / (high - low) * BINS))] += 1
    edges = [low + (high - low) * place / BINS for place in range(BINS + 1)]
    return list(zip(edges, edges[1:], counts, strict=False))


def print_made(made: Made, models: Sequence[str], trainable: Sequence[str]) -> None:
    """Print the table on stdout; ``trainable`` are those of the models that this machine has."""
    console = stdout_console()
    paired, counts, prompts = made.paired, made.counts, len(made.questions.asked)
    _line(
        console,
        Text(f"{made.output}: {counted(len(paired.pairs), 'pair')} of {counted(prompts, 'prompt')}", style="bold"),
    )
    _count(console, prompts, "prompts", "")
    _count(console, made.questions.repeated, "repeated", "asked once", inner=True)
    _count(console, made.questions.follow_ups, "further turns", "not asked", inner=True)
    tokens = f"{counts.tokens / counts.answers:,.0f} tokens on average" if counts.answers and counts.tokens else ""
    _count(console, counts.answers, "answers", ", ".join(filter(None, [" and ".join(models), tokens])))
    _count(console, counts.cut, "cut", "did not end by themselves: --max-new-tokens", inner=True)
    for reason, count in counts.unanswered.items():
        _count(console, count, "not given", reason, inner=True)
    for reason, count in paired.left_out.most_common():
        _count(console, count, "left out", reason, inner=True)
    dropped = sum(paired.dropped.values())
    _count(console, dropped, "prompts without a pair", "")
    for reason, count in paired.dropped.most_common():
        _count(console, count, "", reason, inner=True)
    _line(console, Text(f"\nscores of {', '.join(made.judges)}", style="bold"))
    for judge_counts in made.judges.values():
        for what, count in judge_counts.items():
            _count(console, count, "", what)
    bins = histogram(made.scores)
    most = max((count for _, _, count in bins), default=0)
    for low, high, count in bins:
        bounds = f"{low:>9.3g}" if low == high else f"{low:>9.3g} to {high:<9.3g}"
        _line(console, Text.assemble(f"  {bounds} ", (_bar(count / most), "cyan"), f" {count:,}"))
    chosen, rejected = (fmean(getattr(pair, side).score for pair in paired.pairs) for side in ("chosen", "rejected"))
    _line(console, Text(f"  chosen {chosen:.3g}, rejected {rejected:.3g} on average"))
    _line(console, Text(f"  margin {fmean(made.gaps):.3g} on average, {median(made.gaps):.3g} in the middle"))
    effect = f"{paired.effect_after:+.2f}"
    if paired.effect_before != paired.effect_after:
        effect += f" ({paired.effect_before:+.2f} before lengths were matched)"
    _line(console, Text(f"  chosen answers are longer by Cohen's d {effect}"))
    _print_check(console, made.checked)
    model = shlex.quote(trainable[0]) if len(trainable) == 1 else "MODEL"
    file = shlex.quote(made.output)
    _line(console, Text(f"\nnext: oddsmith data check {file} --model {model}"))
    _line(console, Text(f"      oddsmith train --model-name-or-path {model} --dataset-name {file} --output-dir RUN"))


def _print_check(console: Console, checked: Survey) -> None:
    found = [finding for finding in checked.findings if finding.verdict != "pass"]
    names = ", ".join(f"{finding.check} ({finding.verdict})" for finding in found)
    _line(console, Text.assemble("\ndata check: ", (checked.verdict, STYLES[checked.verdict]), f"  {names}".rstrip()))


def _count(console: Console, count: int, what: str, more: str, *, inner: bool = False) -> None:
    if count or not inner:
        indent = "    " if inner else "  "
        _line(console, Text(f"{indent}{count:>9,} {what}{'  ' if what and more else ''}{more}".rstrip()))


def _bar(share: float) -> str:
    eighths = round(share * BAR * 8)
    return "█" * (eighths // 8) + BLOCKS[eighths % 8].strip()


def _line(console: Console, text: Text) -> None:
    console.print(text, soft_wrap=True)
