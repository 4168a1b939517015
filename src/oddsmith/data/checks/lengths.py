"""Check for length bias: is "longer is better" (or "shorter is better") the only thing that a dataset teaches?

    d    = (mean_w - mean_l) / s,  s^2 = (var_w + var_l) / 2        Cohen's d
    gap  = mean_w / mean_l - 1
    rule = share of the pairs of different length in which the chosen answer is the longer one

Sources: Cohen, "Statistical Power Analysis for the Behavioral Sciences" (1988): 0.5 is a medium effect. Hedges and
Olkin, "Statistical Methods for Meta-Analysis" (1985): its standard error for two groups of n is sqrt(2/n + d^2 / 4n).
On length in preference data: Singhal et al., "A Long Way to Go", arXiv 2310.03716.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .catalogue import Finding

MEDIUM_EFFECT = 0.5
LONGER_RULE = 0.70  # a model is likely to learn a rule that is right this often
CONFIDENCE = 1.96  # standard errors: 95%
MIN_PAIRS = 10


@dataclass
class LengthSums:
    """Sums over pairs of the lengths of chosen (w) and rejected (l) answers; can be added up over processes."""

    pairs: int = 0
    sum_w: int = 0
    sum_l: int = 0
    squares_w: int = 0
    squares_l: int = 0
    chosen_longer: int = 0
    rejected_longer: int = 0

    def count(self, chosen: int, rejected: int) -> None:
        """Add a pair of answers of these lengths."""
        self.pairs += 1
        self.sum_w += chosen
        self.sum_l += rejected
        self.squares_w += chosen * chosen
        self.squares_l += rejected * rejected
        self.chosen_longer += chosen > rejected
        self.rejected_longer += rejected > chosen

    def add(self, other: LengthSums) -> None:
        """Add the sums over other pairs."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    @property
    def effect(self) -> float | None:
        """Return Cohen's d; ``None`` where it has no value, as the answers of each side are all equally long."""
        pairs = self.pairs
        # In whole numbers, as differences of their means round: pairs^2 times the variances.
        spread = pairs * (self.squares_w + self.squares_l) - self.sum_w**2 - self.sum_l**2
        if spread <= 0:
            return None
        return (self.sum_w - self.sum_l) / math.sqrt(spread / 2)

    @property
    def rule(self) -> float:
        """Return the share of pairs of different length that have the longer answer chosen; 0.5 without such pairs."""
        different = self.chosen_longer + self.rejected_longer
        return self.chosen_longer / different if different else 0.5

    def _effect_in_words(self) -> str:
        if self.effect is not None:
            return f"Cohen's d {self.effect:+.2f}"
        if self.pairs < 2:
            return "one pair has no variance, so there is no Cohen's d"
        return "all answers of a side are equally long, so there is no variance and no Cohen's d"

    def _rule_in_words(self, word: str) -> str:
        different = self.chosen_longer + self.rejected_longer
        if not different:
            return "no two answers differ in length"
        return f'"the {word} one is better" is right in {max(self.rule, 1 - self.rule):.0%} of the pairs'

    def finding(self, unit: str) -> Finding:
        """Warn where the effect is significant and not small, or where length decides most pairs.

        ``unit`` is that of the lengths: ``"tokens"`` or ``"characters"``.
        """
        effect, rule, pairs = self.effect, self.rule, max(1, self.pairs)
        d = effect or 0.0
        error = math.sqrt(2 / pairs + d * d / (4 * pairs))
        rule_error = math.sqrt(0.25 / max(1, self.chosen_longer + self.rejected_longer))
        biased = abs(d) >= MEDIUM_EFFECT and abs(d) - CONFIDENCE * error > 0
        ruled = abs(rule - 0.5) >= LONGER_RULE - 0.5 and abs(rule - 0.5) - CONFIDENCE * rule_error > 0
        word = "longer" if rule >= 0.5 else "shorter"
        is_warning = self.pairs >= MIN_PAIRS and (biased or ruled)
        mean_w, mean_l = self.sum_w / pairs, self.sum_l / pairs
        gap = f", {mean_w / mean_l - 1:+.0%}" if mean_l else ""
        return Finding(
            check="length bias",
            verdict="warn" if is_warning else "pass",
            count=0,
            share=0.0,
            rows=(),
            found=f"mean {mean_w:,.0f} {unit} chosen, {mean_l:,.0f} rejected{gap}; {self._effect_in_words()};"
            f" {self._rule_in_words(word)}",
            meaning=f'a model can do well by learning that "{word}" is better, and little else',
            fix="add pairs in which the other length wins, or choose pairs of similar length",
        )
