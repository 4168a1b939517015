"""Write values of strangers as plain text of a Markdown page: no HTML, link, heading or line break comes of them."""

from __future__ import annotations

import re
from typing import Any

MOST_CHARACTERS = 200
MOST_ITEMS = 50  # of a list

# All that could be markup, for CommonMark and for GitHub's and the hub's additions: tables, math, addresses that become
# links by themselves (``https://``, ``www.``, ``a@b.c``). Within a word ``_`` is none, nor is ``:`` before a blank.
_MARKUP = re.compile(r"""[]\\`*<>&|[~$@#^!{}"]|:(?!\s)|(?<![^\W_])_|_(?![^\W_])|(?<=www)\.""", re.IGNORECASE)
# At the beginning of a line: a list, a ruler, or what makes the line above a heading.
_OPENING = re.compile(r"^(\d{0,9})([-+=.)])(?=[\s=-]|$)")


def as_text(value: Any) -> str:
    """Return a value as Markdown for its plain text, on one line, cut where it is long; lists with commas.

    Markup is written as character references, and what no one sees (control characters, marks that turn the direction
    of writing, halves of surrogate pairs) as a replacement character.
    """
    if isinstance(value, list):
        more = ["..."] if len(value) > MOST_ITEMS else []
        return ", ".join([as_text(item) for item in value[:MOST_ITEMS]] + more)
    text = " ".join(visible(str(value), keep="\t\r\n").split())
    if len(text) > MOST_CHARACTERS:
        text = text[:MOST_CHARACTERS] + " ..."
    text = _MARKUP.sub(lambda found: _reference(found[0]), text)
    return _OPENING.sub(lambda found: found[1] + _reference(found[2]), text)


def visible(text: str, keep: str = "") -> str:
    """Return a text with a replacement character for each one that cannot be seen, but for those to ``keep``."""
    return text if text.isprintable() else "".join(c if c.isprintable() or c in keep else "\ufffd" for c in text)


def is_identifier(name: Any) -> bool:
    """Return whether a value can be a setting's name, which is shown as code."""
    return isinstance(name, str) and name.isidentifier() and name.isascii() and len(name) <= MOST_CHARACTERS


def _reference(character: str) -> str:
    return f"&#{ord(character)};"
