"""List the layouts that are restated before they are read: those of platforms, annotation tools and comparisons.

A row with ``chosen`` and ``rejected`` is none of them. The first that fits is taken, the most specific ones first.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from . import annotated, judged, platforms
from .families import is_of_answers
from .judged import Restated, Row
from .verdicts import WINNERS


class Layout(NamedTuple):
    """A way to write pairs that has neither ``chosen`` nor ``rejected``."""

    name: str
    fits: Callable[[Row], bool]
    restate: Callable[[Row], Restated]


def _has(*columns: str) -> Callable[[Row], bool]:
    return lambda row: all(column in row for column in columns)


LAYOUTS = (
    Layout("OpenAI", _has("input", platforms.PREFERRED, platforms.NOT_PREFERRED), platforms.from_openai),
    Layout("ms-swift", platforms.is_swift, platforms.from_swift),
    Layout("Amazon Nova", platforms.is_nova, platforms.from_nova),
    Layout("Gemini", _has("contents", "completions"), platforms.from_gemini),
    Layout("UltraFeedback", judged.is_ultrafeedback, partial(judged.ranked, column="completions")),
    Layout("Argilla", annotated.is_argilla, annotated.from_argilla),
    Layout("Label Studio", annotated.is_label_studio, annotated.from_label_studio),
    Layout("better and worse answer", _has("question", "response_j", "response_k"), platforms.from_paired_answers),
    Layout("summaries", _has("info", "summaries", "choice"), platforms.from_summaries),
    Layout("answers with a winner or scores", judged.has_verdict, judged.compared),
    Layout("list of answers with scores", judged.has_rated_list, judged.ranked),
)


# Columns of these layouts, beside those that belong to a family (response_a, score_2, ...).
NAMES = frozenset(
    (
        *("completions", "contents", "response", "rejected_response", "rejected_messages", "response_j", "response_k"),
        *("info", "summaries", "systemInstruction", "system_instruction", platforms.PREFERRED, platforms.NOT_PREFERRED),
        *(*judged.LISTS, *judged.LIST_SCORES, *WINNERS),
    )
)


def is_read(name: str) -> bool:
    """Return whether a layout reads a column of this name."""
    return name in NAMES or is_of_answers(name)


def layout_of(row: Row) -> Layout | None:
    """Return the layout of a row that has no ``chosen`` and ``rejected``; None where it has none of them."""
    return next((layout for layout in LAYOUTS if layout.fits(row)), None)
