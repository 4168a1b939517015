"""Checks of what a row holds beside or around the text of its pair; they are made while training, too.

Prompts that are no more than the words that both answers begin with, columns that are not read (parts of the prompt,
images), scores against the choice, HTML and carriage returns.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..formats import PreferencePair, restated, unread_columns
from ..formats.columns import is_media
from ..formats.scores import scores_of_sides
from . import catalogue
from .catalogue import Hit
from .texts import PairTexts

PLACEHOLDER = re.compile(r"<(?:image|video|audio)>")

# Tags that write text, and entities. Code is left out before they are looked for.
HTML = re.compile(
    r"</?(?:p|br|div|span|li|ul|ol|b|i|u|em|strong|a|h[1-6]|table|tr|td|th|blockquote|pre|code|img|hr|font|sup|sub)"
    r"(?:\s[^<>\n]{0,200})?/?>|&(?:nbsp|lt|gt|amp|quot|apos|#\d{2,5}|#x[0-9a-f]{2,4});",
    re.IGNORECASE,
)
CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)
ABOUT_HTML = re.compile(r"html|xml|svg|jsx|react|css|markup|web ?(?:page|site)|javascript|网页|前端", re.IGNORECASE)


def row_hits(row: Mapping[str, Any], pair: PreferencePair, texts: PairTexts) -> Iterator[Hit]:
    """Yield the checks of this module that a row and its pair do not pass.

    The part of a hit is the name of a column, a side of the pair, or where the prompt is from.
    """
    if pair.is_prompt_shared_words:
        yield catalogue.SHARED_WORDS, "the words that both begin with"
    for name in unread_columns(row, pair):
        yield catalogue.UNREAD_COLUMN, name
    yield from ((catalogue.MEDIA, name) for name in _media(row))
    if match := PLACEHOLDER.search(texts.prompt):
        yield catalogue.MEDIA, f"{match[0]} in the prompt"
    yield from (
        (catalogue.SCORES, name) for name, chosen, rejected in scores_of_sides(restated(row)) if chosen < rejected
    )
    for side in ("chosen", "rejected"):
        if has_html(getattr(texts, side)) and not ABOUT_HTML.search(texts.prompt):
            yield catalogue.HTML, side
    for part in ("prompt", "chosen", "rejected"):
        if "\r" in getattr(texts, part):
            yield catalogue.CARRIAGE_RETURNS, part


def has_html(text: str) -> bool:
    """Return whether a text has tags or entities of HTML outside of code."""
    return ("<" in text or "&" in text) and HTML.search(CODE.sub("", text)) is not None


def _media(row: Mapping[str, Any]) -> Iterator[str]:
    for name, value in row.items():
        if is_media(str(name)) and not isinstance(value, bool | int | float) and _is_something(value):
            yield str(name)


def _is_something(value: Any) -> bool:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return any(map(_is_something, value))
    return bool(value.strip()) if isinstance(value, str) else value is not None
