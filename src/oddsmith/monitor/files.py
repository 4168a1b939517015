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


def stamp(path: Path) -> tuple[int, int] | None:
    """What changes with another trainer's file, or with the files of its folder."""
    stamps = [(one.st_size, one.st_mtime_ns) for file in foreign_files(path) if (one := _stat(file)) is not None]
    return (sum(size for size, _ in stamps), max(moment for _, moment in stamps)) if stamps else None


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None
