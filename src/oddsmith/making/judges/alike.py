"""Tell which answers say the same, blanks and line breaks aside."""

from __future__ import annotations


def squeezed(text: str) -> str:
    """Return a text with single spaces in the place of all blanks and line breaks; two such texts are alike."""
    return " ".join(text.split())
