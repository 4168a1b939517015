"""Combine the scores of several judges, which may be on different scales, into one score for each answer.

One judge: its scores, as they are (with their sign changed under a negative weight). Several, over all n answers of
the set that every judge could score:

    z_j(a) = (s_j(a) - mean_j) / sd_j         sd_j: population standard deviation; z_j = 0 where sd_j = 0
    s(a)   = sum_j w_j z_j(a) / sum_j |w_j|

so a difference of 1 is one standard deviation if all judges agree, and a weight says how much a judge counts whatever
its scale. An answer that one of the judges could not score has no score.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .records import Answer, Question, Score


@dataclass(frozen=True)
class Judged:
    """A question, the answers to it, and what each judge says of each answer."""

    question: Question
    answers: Sequence[Answer]
    scores: Mapping[str, Sequence[Score]]  # by the judge's name; one for each answer


def combined(judged: Sequence[Judged], weights: Mapping[str, float]) -> list[list[float | None]]:
    """Return one score for each answer to each question; None where a judge could not tell.

    Scores of several judges are standardised over the set; ``weights`` has the weight of each by its name.
    """
    values = [
        [[one.scores[name][place].value for name in weights] for place in range(len(one.answers))] for one in judged
    ]
    if len(weights) == 1:
        sign = math.copysign(1.0, next(iter(weights.values())))
        return [[None if value is None else sign * value for (value,) in answers] for answers in values]
    whole = [[value for value in row if value is not None] for answers in values for row in answers if None not in row]
    scales = [_scale(column) for column in zip(*whole, strict=True)] if whole else []
    total = sum(abs(weight) for weight in weights.values())
    return [
        [
            None
            if None in row
            else sum(
                weight * (value - mean) / sd if sd else 0.0
                for weight, value, (mean, sd) in zip(weights.values(), row, scales, strict=True)
                if value is not None
            )
            / total
            for row in answers
        ]
        for answers in values
    ]


def _scale(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and population standard deviation."""
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
