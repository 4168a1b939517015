"""Lines of a text of any size: one longer than anything a trainer logs is cut there, and its rest passed over."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

LONGEST_LINE = 1_000_000  # characters; a start event with the numbers of 100,000 cut rows has 700,000
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[@-_])")


def lines_of(path: Path) -> Iterator[str]:
    """The lines of a file, without colours; a carriage return ends one too, as progress bars have it.

    Args:
        path: The file; what is no UTF-8 in it is replaced.

    Returns:
        The lines, one by one.
    """
    return _lines_of(path)


def _lines_of(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        while line := file.readline(LONGEST_LINE):
            if not line.endswith("\n"):
                while (rest := file.readline(LONGEST_LINE)) and not rest.endswith("\n"):
                    pass
            for part in _ESCAPES.sub("", line.rstrip("\n")).split("\r"):
                if part.strip():
                    yield part
