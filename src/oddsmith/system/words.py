"""Word what messages of every room have in common."""

from __future__ import annotations

from collections.abc import Iterable


def enumerated(parts: Iterable[str]) -> str:
    """Return the parts of a sentence as one: ``a``, ``a and b``, ``a, b and c``."""
    *others, last = parts
    return f"{', '.join(others)} and {last}" if others else last
