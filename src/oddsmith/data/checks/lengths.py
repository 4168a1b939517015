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
    sum_w: float = 0.0
    sum_l: float = 0.0
    squares_w: float = 0.0
    squares_l: float = 0.0
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
    def effect(self) -> float:
        """Return Cohen's d; 0 where all lengths are the same."""
        if not self.pairs:
            return 0.0
        mean_w, mean_l = self.sum_w / self.pairs, self.sum_l / self.pairs
        variance = (self.squares_w + self.squares_l) / self.pairs - mean_w**2 - mean_l**2
        return (mean_w - mean_l) / math.sqrt(variance / 2) if variance > 0 else 0.0

    @property
    def rule(self) -> float:
        """Return the share of pairs of different length that have the longer answer chosen; 0.5 without such pairs."""
        different = self.chosen_longer + self.rejected_longer
        return self.chosen_longer / different if different else 0.5

    def finding(self, unit: str) -> Finding:
        """Warn where the effect is significant and not small, or where length decides most pairs.

        ``unit`` is that of the lengths: ``"tokens"`` or ``"characters"``.
        """
        d, rule, pairs = self.effect, self.rule, max(1, self.pairs)
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
            found=f"mean {mean_w:,.0f} {unit} chosen, {mean_l:,.0f} rejected{gap}; Cohen's d {d:+.2f};"
            f' "the {word} one is better" is right in {max(rule, 1 - rule):.0%} of the pairs',
            meaning=f'a model can do well by learning that "{word}" is better, and little else',
            fix="add pairs in which the other length wins, or choose pairs of similar length",
        )
