"""Ratings: from completions with scores (UltraFeedback) to the best one and the worst one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..errors import RowError
from .values import checked_text, kind_of, parsed

SCORE_KEYS = ("overall_score", "fine-grained_overall_score", "score", "rating")
TEXT_KEYS = ("response", "completion", "content", "text")


def best_and_worst(completions: Any) -> tuple[str, str]:
    """The texts of the completion with the highest score and of the one with the lowest.

    The score is the first of ``SCORE_KEYS`` that at least two completions have as a number ("4.5" is one, "N/A" is
    not); completions without it are left out. Of several with the same score the first one stands for all. Where all
    scores are equal nothing is preferred, and the row is refused.

    Args:
        completions: Objects with a text (one of ``TEXT_KEYS``) and a score, or JSON that spells them.

    Returns:
        The best text and the worst text.

    Raises:
        RowError: The scores state no preference, or the completions are malformed.

    Source: Cui et al., "UltraFeedback", arXiv 2310.01377; openbmb/UltraFeedback.
    """
    completions = parsed(completions, "completions")
    if completions is None:
        raise RowError("null value", "completions is null; expected a list of completions with scores")
    if not isinstance(completions, list | tuple) or not all(isinstance(item, Mapping) for item in completions):
        raise RowError("malformed completions", f"completions is {kind_of(completions)}; expected a list of objects")
    scores = _scores(completions)
    best, worst = max(scores, key=lambda item: item[0]), min(scores, key=lambda item: item[0])
    if best[0] == worst[0]:
        raise RowError("no preference", f"all {len(scores)} scored completions have the score {best[0]:g}")
    return _text(completions[best[1]], best[1]), _text(completions[worst[1]], worst[1])


def _scores(completions: list[Mapping[str, Any]] | tuple[Mapping[str, Any], ...]) -> list[tuple[float, int]]:
    """Scores with the positions of their completions."""
    for key in SCORE_KEYS:
        numbers = [(_number(item.get(key)), position) for position, item in enumerate(completions)]
        scores = [(number, position) for number, position in numbers if number is not None]
        if len(scores) >= 2:
            return scores
    raise RowError(
        "no preference",
        f"completions holds {len(completions)}, fewer than two of them with a score ({', '.join(SCORE_KEYS)})",
    )


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _text(completion: Mapping[str, Any], position: int) -> str:
    key = next((key for key in TEXT_KEYS if key in completion), TEXT_KEYS[0])
    return checked_text(completion.get(key), f"completions[{position}].{key}", "response is not text")
