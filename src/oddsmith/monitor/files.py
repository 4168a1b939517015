"""Read the files of a run folder: regular files only, no links, and of a growing file only what is new."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ..diagnose.readers import LOG_FILES
from ..system.outside import open_file
from ..system.run_folder import TRAINER_STATE_FILE

MAX_LINE_BYTES = 2_000_000  # twice what ``oddsmith diagnose`` reads of a line; a longer one is skipped
CHUNK_BYTES = 4_000_000


def open_plain(path: Path) -> BinaryIO | None:
    """Open a regular file; ``None`` for a link, a pipe, a device, or nothing at all."""
    try:
        return open_file(path, follow=False)
    except OSError:
        return None


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """Return the beginning of a regular file; empty if there is none."""
    file = open_plain(path)
    if file is None:
        return b""
    with file:
        return file.read(max_bytes)


class Tail:
    """Reads a growing file, which need not exist yet, line by line: each line once, when it is complete."""

    def __init__(self, path: Path):
        self.path = path
        self._offset = 0  # of the first byte after the lines read so far
        self._identity: tuple[int, int] | None = None
        self._skipping = False  # the line at the offset is too long, and its end has not been seen

    def restarted(self) -> bool:
        """Return whether the file was replaced or has become shorter; the next read then begins at its start."""
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
        """Yield the lines that were completed since the last call, without their ends."""
        file = open_plain(self.path)
        if file is None:
            return
        with file:
            file.seek(self._offset)
            rest = b""
            while chunk := file.read(CHUNK_BYTES):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._offset += len(line) + 1
                    if not self._skipping and len(line) <= MAX_LINE_BYTES:
                        yield line
                    self._skipping = False
                if len(rest) > MAX_LINE_BYTES:
                    self._offset, self._skipping, rest = self._offset + len(rest), True, b""


def foreign_files(path: Path) -> list[Path]:
    """Return the files that ``read_history`` may open of another trainer's run."""
    patterns = (TRAINER_STATE_FILE, f"checkpoint-*/{TRAINER_STATE_FILE}", *LOG_FILES, "*.csv")
    return [path] if path.is_file() else sorted(file for pattern in patterns for file in path.glob(pattern))


def stamps(files: list[Path]) -> tuple[tuple[Path, int, int], ...]:
    """Return path, size and modification time (ns) of each file that is there: they differ when one has changed."""
    found = []
    for file in files:
        try:
            status = file.stat()
        except OSError:
            continue
        found.append((file, status.st_size, status.st_mtime_ns))
    return tuple(found)
