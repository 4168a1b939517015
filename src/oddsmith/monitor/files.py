"""Files of a run folder that are read whole: settings, and what other trainers leave."""

from __future__ import annotations

import os
from pathlib import Path

from ..system.run_folder import TRAINER_STATE_FILE
from .tail import open_plain


def read_text(path: Path, most_bytes: int) -> str:
    """The beginning of a regular file; empty where there is none."""
    descriptor = open_plain(path)
    if descriptor is None:
        return ""
    with os.fdopen(descriptor, "rb") as file:
        return file.read(most_bytes).decode("utf-8", errors="replace")


def foreign_files(path: Path) -> list[Path]:
    """What ``read_history`` may open of another trainer's run."""
    patterns = (TRAINER_STATE_FILE, f"checkpoint-*/{TRAINER_STATE_FILE}", "trainer_log.jsonl", "*.csv")
    return [path] if path.is_file() else [file for pattern in patterns for file in path.glob(pattern)]


def stamp(path: Path) -> tuple[tuple[Path, int, int], ...]:
    """Return path, size and modification time (ns) of every file of another trainer's run that is there."""
    found = [(file, _stat(file)) for file in sorted(foreign_files(path))]
    return tuple((file, stat.st_size, stat.st_mtime_ns) for file, stat in found if stat is not None)


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None
