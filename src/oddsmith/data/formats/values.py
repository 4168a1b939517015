"""Check single values of a row, as they come out of JSON, CSV and Arrow, and name their kinds in messages."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import RowError
from .written import read_text

_DECIMAL_COMMA = re.compile(r"\s*[+-]?\d+,(?:\d\d?|\d{4,})\s*")


def kind_of(value: Any) -> str:
    """Return a value's kind in plain words, for messages: ``"null"``, ``"a number"``, ``"a list"``, ..."""
    kinds: tuple[tuple[type | tuple[type, ...], str], ...] = (
        (type(None), "null"),
        (bool, "true or false"),
        (str, "text"),
        ((int, float), "a number"),
        (Mapping, "an object"),
        ((list, tuple), "a list"),
    )
    return next((name for types, name in kinds if isinstance(value, types)), f"a {type(value).__name__}")


def checked_text(value: Any, where: str, reason: str) -> str:
    """Return the value if it is text; else raise a ``RowError`` with the reason ``"null value"``, or ``reason``."""
    if value is None:
        raise RowError("null value", f"{where} is null; expected text")
    if not isinstance(value, str):
        raise RowError(reason, f"{where} is {kind_of(value)}; expected text")
    return value


def parsed(value: Any, where: str) -> Any:
    """Return the value, parsed where it is text (JSON or Python); blank text is null, and other text a ``RowError``."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return read_text(value)
    except json.JSONDecodeError as error:
        raise RowError(f"malformed {where}", f"{where} is no JSON at character {error.pos}: {error.msg}") from error


def number_of(value: Any) -> float | None:
    """Return a finite number, or the one that text holds (``"4.5"``, ``"4,5"``); None for anything else.

    A comma before three digits may be that of thousands, so ``"1,234"`` is no number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and _DECIMAL_COMMA.fullmatch(value):
        value = value.replace(",", ".")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def without_nulls(value: Any) -> Any:
    """Return a copy without null entries: Arrow gives every object of a column the keys of all, filled with nulls."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [without_nulls(item) for item in value]
    return value


def common_prefix_length(first: Sequence, second: Sequence) -> int:
    """Return the number of characters, tokens or messages that both begin with."""
    shorter = min(len(first), len(second))
    if first[:shorter] == second[:shorter]:
        return shorter
    return next(position for position in range(shorter) if first[position] != second[position])
