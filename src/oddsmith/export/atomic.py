"""Write files and folders of an export: each appears complete or not at all, and replaces nothing unless asked to.

``system.files`` writes under a temporary name and renames. Here, a target that exists is refused before the work
begins, only one export at a time writes to it, and errors of the disk become one line.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import ConfigError, ExportError
from ..system.files import CLOSED, FULL, explained, free_bytes, in_words, replacing, replacing_folder
from ..system.names import require_folder_name
from ..system.outside import require_file

# In every folder that an export has written, so that --overwrite removes nothing else.
RECORD_FILE = "export.json"


@contextmanager
def write_folder(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder, which becomes ``target`` when the block ends without an error.

    Missing folders above it are made; ``overwrite`` replaces an earlier export (with its ``export.json``). Raise
    ``ConfigError`` where ``target`` is a file, lies below one, holds something, or is being written by another export,
    and ``ExportError`` where the disk is full or cannot be written.
    """
    _refuse_file_above(target)
    if target.exists() and not target.is_dir():
        raise ConfigError(f"{target}: is a file; expected a folder, or the name of a new one")
    if target.is_dir() and any(target.iterdir()):
        if not (target / RECORD_FILE).is_file():
            raise ConfigError(f"{target}: is not empty and holds no export ({RECORD_FILE}); choose another folder")
        if not overwrite:
            raise ConfigError(f"{target}: already holds an export; choose another folder, or replace it (--overwrite)")
    with _locked(target), replacing_folder(target) as partial:
        yield partial


@contextmanager
def write_file(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty file, which becomes ``target`` when the block ends without an error.

    Missing folders above it are made; ``overwrite`` replaces a file. Raise ``ConfigError`` where ``target`` is a
    folder, lies below a file, is there already, or is being written by another export, and ``ExportError`` as
    ``write_folder`` does.
    """
    _refuse_file_above(target)
    if target.is_dir():
        raise ConfigError(f"{target}: is a folder; expected the name of a file")
    if target.exists() and not overwrite:
        raise ConfigError(f"{target}: is there already; choose another name, or replace it (--overwrite)")
    with _locked(target):
        for leftover in target.absolute().parent.glob(f"{glob.escape(target.name)}.*.partial"):
            with suppress(IsADirectoryError):
                leftover.unlink()  # of an export that was killed: this process holds the lock
        with replacing(target) as partial:
            yield partial


def require_space(place: Path, needed_bytes: int) -> None:
    """Raise ``ExportError`` where less than ``needed_bytes`` is free at a place, which need not exist yet."""
    free = free_bytes(place)
    if free < needed_bytes:
        raise ExportError(
            f"{place}: needs {needed_bytes / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free there;"
            " make room, or write elsewhere (--output)"
        )


@contextmanager
def clear_write_errors(target: Path) -> Iterator[None]:
    """Turn an error of writing to ``target`` (disk full, no permission) into an ``ExportError`` of one line."""

    def explain(fault: int, error: Exception) -> None:
        why = in_words(fault)
        if fault in FULL:
            raise ExportError(
                f"{target}: nothing was written ({why}); make room, or write elsewhere (--output)"
            ) from error
        place = str(getattr(error, "filename", None) or "")
        if fault in CLOSED and place.startswith((str(target.parent), str(target.absolute().parent))):
            raise ExportError(f"{target}: cannot be written ({why}); write elsewhere (--output)") from error

    with explained(explain):
        yield


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Make the folders above a target, and keep other exports away from it; empty folders are removed afterwards."""
    with clear_write_errors(target):
        missing = [parent for parent in target.absolute().parents if not parent.exists()]
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(target.with_name(f"{target.name}.partial.lock"), timeout=0)
        if os.path.lexists(lock.lock_file):
            require_file(lock.lock_file, follow=False)
        try:
            with lock:
                try:
                    yield
                finally:
                    # While it is still held: nothing waits for it (timeout 0), so nothing holds the unlinked file.
                    Path(lock.lock_file).unlink(missing_ok=True)
        except Timeout:
            raise ConfigError(f"{target}: another export is writing there; wait for it, or write elsewhere") from None
        finally:
            for folder in missing:
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()


def _refuse_file_above(target: Path) -> None:
    require_folder_name(target, "the target")
    for parent in target.absolute().parents:
        if parent.exists():
            if not parent.is_dir():
                raise ConfigError(f"{target}: {parent} is a file; expected a folder there")
            return
