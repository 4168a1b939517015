"""A checkpoint that could not be written: its bytes are given back, and one line says why and what is left."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import CheckpointError, SaveError
from ..system.files import CLOSED, explained, free_bytes, in_words
from .choose import checkpoints, step_of
from .manifest import is_unfinished, verify
from .space import in_units

# What the system may say against writing a file; anything else is no matter of the disk.
_ROOM = (errno.ENOSPC, errno.EDQUOT)
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
_BROKEN = (errno.EIO, errno.ENXIO, errno.ENODEV)
_KNOWN = (*_ROOM, errno.EFBIG, *CLOSED, *_GONE, *_BROKEN)


@contextmanager
def clear_save_errors(folder: Path, needed_bytes: Callable[[], int]) -> Iterator[None]:
    """Say in one line why a checkpoint, or the final model, could not be written.

    Args:
        folder: ``RUN/checkpoint-STEP``, or the run folder for the final model.
        needed_bytes: What it takes; asked for only when it could not be written.

    Raises:
        SaveError: The disk is full, closed, broken or gone. Other errors pass.
    """

    def explain(fault: int, error: Exception) -> None:
        if fault in _KNOWN:
            raise SaveError(_message(folder, fault, needed_bytes()), folder_is_gone=fault in _GONE) from error

    with explained(explain):
        yield


def give_back(folder: Path) -> None:
    """Remove what was written of a checkpoint that failed: it is none, and its bytes may be what is missing.

    To be called when no process writes there any more.

    Args:
        folder: ``RUN/checkpoint-STEP``; left alone unless it is a save of ours that was never finished.
    """
    if is_unfinished(folder):
        shutil.rmtree(folder, ignore_errors=True)


def _message(folder: Path, fault: int, needed: int) -> str:
    run = folder.parent if step_of(folder) is not None else folder
    last = _last_good(run)
    left = f"{last.name} is whole" if last else "no checkpoint was saved before"
    go_on = ", then go on with --resume" if last else ""
    return f"{folder}: not saved ({in_words(fault)}){_details(folder, fault, needed)}; {left}; {_cure(fault)}{go_on}"


def _details(folder: Path, fault: int, needed: int) -> str:
    if fault not in _ROOM:
        return ""
    begun = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if is_unfinished(folder) else 0
    free = free_bytes(folder) + begun  # it will be given back
    text = f": it takes {in_units(needed)}, and {in_units(free)} are free there"
    # Free bytes alone would not tell then: a quota is used up, or the number of files.
    return text if free < needed else f"{text}, though not for this user or not for one more file (quota, df -i)"


def _cure(fault: int) -> str:
    if fault in _ROOM:
        return "make room (a smaller save_total_limit keeps fewer checkpoints)"
    if fault == errno.EFBIG:
        return "raise the limit on the size of files (ulimit -f)"
    if fault in _GONE:
        return "the run folder was removed while the run was going on"
    if fault in CLOSED:
        return "make the folder writable"
    return "look after the disk (dmesg tells more)"


def _last_good(run: Path) -> Path | None:
    """The newest checkpoint that verifies; nothing is moved, unlike when a run goes on."""
    for folder in reversed(checkpoints(run)):
        try:
            verify(folder)
        except CheckpointError:
            continue
        return folder
    return None
