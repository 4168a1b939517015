"""Find the scores of both answers of a row: ``score_chosen`` and ``score_rejected``, or columns named like them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from .columns import words_of
from .values import number_of

SCORE_WORDS = frozenset(("score", "scores", "rating", "ratings", "reward", "rewards", "quality", "grade", "grades"))


def scores_of_sides(row: Mapping[str, Any]) -> Iterator[tuple[str, float, float]]:
    """Yield the columns of a score of the chosen answer, with it and the score of the rejected one."""
    for name, value in row.items():
        other = counterpart(str(name))
        if other is None or other not in row:
            continue
        chosen, rejected = number_of(value), number_of(row[other])
        if chosen is not None and rejected is not None:
            yield str(name), chosen, rejected


@lru_cache(maxsize=4096)
def counterpart(name: str) -> str | None:
    """Return the column of the rejected answer's score for that of the chosen one; None for any other column."""
    words = words_of(name)
    if "chosen" not in words or SCORE_WORDS.isdisjoint(words):
        return None
    return re.sub("chosen", lambda match: "Rejected" if match[0][0] == "C" else "rejected", name, flags=re.IGNORECASE)
