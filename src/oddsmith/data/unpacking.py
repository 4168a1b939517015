"""How much a packed file may unpack to: kilobytes of it can stand for gigabytes."""

from __future__ import annotations

# Text shrinks to a tenth, the same line over and over to a hundredth; packers can do a thousand.
MAX_RATIO, MIN_LIMIT_BYTES = 200, 64 * 2**20


def unpacked_limit_bytes(size_bytes: int) -> int:
    """Return how much a file of this size may unpack to."""
    return max(MIN_LIMIT_BYTES, MAX_RATIO * size_bytes)


def too_much(size_bytes: int) -> str:
    """Return what is wrong with a file of this size that unpacks to more."""
    return f"unpacks to more than {unpacked_limit_bytes(size_bytes):,} bytes, {MAX_RATIO} times its size"
