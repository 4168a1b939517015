"""How large tables of others may be: what a packed file may unpack to, how many columns there may be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from ..errors import DataError

MAX_COLUMNS = 1_000  # of a table, or keys of a row; the widest of preferences have a hundred
MAX_NAME_LETTERS = 1_000  # of a column; what is longer is no header

# Kilobytes of a packed file can stand for gigabytes: text shrinks to a tenth, the same line over and over to a
# hundredth, but packers can do a thousand.
MAX_RATIO, MIN_LIMIT_BYTES = 200, 64 * 2**20


def unpacked_limit_bytes(size_bytes: int) -> int:
    """Return how much a file of this size may unpack to."""
    return max(MIN_LIMIT_BYTES, MAX_RATIO * size_bytes)


def too_much(size_bytes: int) -> str:
    """Return what is wrong with a file of this size that unpacks to more."""
    return f"unpacks to more than {unpacked_limit_bytes(size_bytes):,} bytes, {MAX_RATIO} times its size"


def require_columns(where: object, names: Collection[object]) -> None:
    """Refuse a table, or a row, of more columns than any has (``DataError``); ``where`` is the file, or the line."""
    if len(names) > MAX_COLUMNS:
        raise DataError(f"{where}: found {len(names):,} columns; expected at most {MAX_COLUMNS:,}")


def require_header(where: object, names: Sequence[str]) -> None:
    """Refuse a header that names a column twice, or has names or a number of them that none has (``DataError``)."""
    require_columns(where, names)
    longest = max(map(len, names), default=0)
    if longest > MAX_NAME_LETTERS:
        raise DataError(f"{where}: found a name of {longest:,} letters in the header; expected names of columns there")
    twice = sorted(name for name, times in Counter(names).items() if times > 1)
    if twice:
        raise DataError(f"{where}: the header names {', '.join(map(repr, twice))} twice; give each column its own name")
