"""Files and folders that appear complete or not at all.

    what is there is checked -> written beside (NAME.partial) -> flushed to the disk -> renamed to NAME

Whatever ends the work before the rename (an error, Ctrl-C, a full disk) removes what was written beside. What a killed
process has left there is removed by the next that writes to the same place.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import ConfigError, ExportError
from ..system.files import CLOSED, FULL, explained, flush_to_disk, free_bytes, in_words
from ..system.names import require_folder_name

# Lies in every folder that an export has written, so that --overwrite removes nothing else.
RECORD_FILE = "export.json"


@contextmanager
def write_folder(target: Path, *, needed_bytes: int = 0, overwrite: bool = False) -> Iterator[Path]:
    """A new folder, written beside and renamed when the block ends well.

    Args:
        target: Where it is to appear.
        needed_bytes: Free space that it will take; asked for before anything is written.
        overwrite: Whether an earlier export there (with its ``export.json``) may be replaced.

    Yields:
        Path: The empty folder to write into.

    Raises:
        ConfigError: ``target`` is a file, lies below one, holds something, or is being written by another export.
        ExportError: Too little space, or the disk cannot be written.
    """
    _refuse_file_above(target)
    if target.exists() and not target.is_dir():
        raise ConfigError(f"{target}: is a file; expected a folder, or the name of a new one")
    if target.is_dir() and any(target.iterdir()):
        if not (target / RECORD_FILE).is_file():
            raise ConfigError(f"{target}: is not empty and holds no export ({RECORD_FILE}); choose another folder")
        if not overwrite:
            raise ConfigError(f"{target}: already holds an export; choose another folder, or replace it (--overwrite)")
    with _beside(target, needed_bytes) as partial:
        partial.mkdir()
        yield partial
        for file in partial.rglob("*"):
            if file.is_file():
                # safetensors lets only the owner read its files; a server of another user may have to.
                file.chmod(partial.stat().st_mode & 0o666)
                flush_to_disk(file)
        _replace_folder(partial, target)


@contextmanager
def write_file(target: Path, *, needed_bytes: int = 0, overwrite: bool = False) -> Iterator[Path]:
    """A new file, written beside and renamed when the block ends well.

    Args:
        target: Where it is to appear; missing folders above it are made.
        needed_bytes: Free space that it will take; asked for before anything is written.
        overwrite: Whether a file there may be replaced.

    Yields:
        Path: Where to write; nothing is there yet.

    Raises:
        ConfigError: ``target`` is a folder, lies below a file, is there already, or is being written by another export.
        ExportError: Too little space, or the disk cannot be written.
    """
    _refuse_file_above(target)
    if target.is_dir():
        raise ConfigError(f"{target}: is a folder; expected the name of a file")
    if target.exists() and not overwrite:
        raise ConfigError(f"{target}: is there already; choose another name, or replace it (--overwrite)")
    with _beside(target, needed_bytes) as partial:
        yield partial
        flush_to_disk(partial)
        partial.replace(target)


def require_space(place: Path, needed_bytes: int) -> None:
    """Refuse to begin what cannot be finished.

    Args:
        place: What is to be written; it need not exist yet.
        needed_bytes: How much it will take.

    Raises:
        ExportError: Less is free where ``place`` would be.
    """
    free = free_bytes(place)
    if free < needed_bytes:
        raise ExportError(
            f"{place}: needs {needed_bytes / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free there;"
            " make room, or write elsewhere (--output)"
        )


@contextmanager
def _beside(target: Path, needed_bytes: int) -> Iterator[Path]:
    """The place to write to, for this process alone; empty before, and gone afterwards unless it was renamed."""
    partial = target.with_name(target.name + ".partial")
    with _clear_errors(target):
        above = [parent for parent in target.absolute().parents if not parent.exists()]
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(partial.with_name(partial.name + ".lock"), timeout=0)
        try:
            with lock:
                try:
                    _remove(partial)
                    require_space(target, needed_bytes)
                    yield partial
                finally:
                    _remove(partial)
                    # While it is still held: nobody waits for it (timeout 0), so nobody holds the unlinked file.
                    Path(lock.lock_file).unlink(missing_ok=True)
        except Timeout:
            raise ConfigError(f"{target}: another export is writing there; wait for it, or write elsewhere") from None
        finally:
            for folder in above:  # made for nothing, if nothing appeared in them
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()


@contextmanager
def _clear_errors(target: Path) -> Iterator[None]:
    """Say in one line why something cannot be written."""

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


def _refuse_file_above(target: Path) -> None:
    require_folder_name(target, "the target")
    for parent in target.absolute().parents:
        if parent.exists():
            if not parent.is_dir():
                raise ConfigError(f"{target}: {parent} is a file; expected a folder there")
            return


def _replace_folder(partial: Path, target: Path) -> None:
    """Rename, with what was there put aside until the new one is in its place."""
    if not target.exists():
        partial.rename(target)
        return
    old = target.with_name(target.name + ".replaced")
    _remove(old)
    target.rename(old)
    try:
        partial.rename(target)
    except OSError:
        old.rename(target)
        raise
    _remove(old)


def _remove(place: Path) -> None:
    if place.is_dir():
        shutil.rmtree(place, ignore_errors=True)
    else:
        place.unlink(missing_ok=True)
