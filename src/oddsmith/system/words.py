"""Word what messages of every room have in common."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a count with its noun: ``1 row``, ``2,354 rows``; ``plural`` is for nouns that take no s."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def enumerated(parts: Iterable[str], word: str = "and") -> str:
    """Return the parts of a sentence as one: ``a``, ``a and b``, ``a, b and c``, or with another word."""
    *others, last = parts
    return f"{', '.join(others)} {word} {last}" if others else last


def word_of(value: Any) -> str:
    """Return a setting as its word: a member of an enumeration of transformers or peft, or the word itself."""
    return str(getattr(value, "value", value))
