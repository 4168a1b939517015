"""The new lines of a file that another process appends to: what was read stays read, what is half written waits."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

LONGEST_LINE_BYTES = 2_000_000  # twice what diagnose reads of a line; a longer one is passed over whole
CHUNK_BYTES = 4_000_000


def open_plain(path: Path) -> int | None:
    """Open a regular file for reading, following no link in its last part.

    Args:
        path: The file.

    Returns:
        A file descriptor; ``None`` for a link, a pipe, a device, or nothing at all.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return None
    return descriptor


class Tail:
    """Reads a growing file line by line.

    Args:
        path: The file; it need not be there yet.
    """

    def __init__(self, path: Path):
        self.path = path
        self._offset = 0  # of the first byte that belongs to no line read so far
        self._identity: tuple[int, int] | None = None
        self._skipping = False  # the line at the offset is too long, and its end has not been seen

    def restarted(self) -> bool:
        """Whether the file is another one or shorter than before; if so, the next read begins at its start."""
        try:
            found = os.lstat(self.path)
        except OSError:
            return False
        identity = (found.st_dev, found.st_ino)
        fresh = self._identity is not None and (identity != self._identity or found.st_size < self._offset)
        if fresh:
            self._offset, self._skipping = 0, False
        self._identity = identity
        return fresh

    def new_lines(self) -> Iterator[bytes]:
        """The lines that were completed since the last call.

        Yields:
            bytes: Each line without its end.
        """
        descriptor = open_plain(self.path)
        if descriptor is None:
            return
        with os.fdopen(descriptor, "rb") as file:
            file.seek(self._offset)
            rest = b""
            while chunk := file.read(CHUNK_BYTES):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._offset += len(line) + 1
                    if not self._skipping and len(line) <= LONGEST_LINE_BYTES:
                        yield line
                    self._skipping = False
                if len(rest) > LONGEST_LINE_BYTES:
                    self._offset, self._skipping, rest = self._offset + len(rest), True, b""
