"""Word what messages of every room have in common."""

from __future__ import annotations

from collections.abc import Iterable


def enumerated(parts: Iterable[str], word: str = "and") -> str:
    """Return the parts of a sentence as one: ``a``, ``a and b``, ``a, b and c``, or with another word."""
    *others, last = parts
    return f"{', '.join(others)} {word} {last}" if others else last
