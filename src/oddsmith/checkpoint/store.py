"""Select the checkpoints of a run folder to resume from or to remove, and explain failed saves. Needs no torch.

The order of checkpoints is that of their names, not of their times, which a wrong clock or a copy changes. Folders that
are not named ``checkpoint-STEP`` are left alone.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import CheckpointError, SaveError
from ..system.files import CLOSED, explained, flush_to_disk, free_bytes, in_units, in_words
from ..system.run_folder import MANIFEST_FILE, QUARANTINE_FOLDER
from .manifest import file_of_another_trainer, is_unfinished, require_ours, retract, verify

AUTO = "auto"  # the newest checkpoint that is complete, or the beginning where no save was ever finished
MIN_KEPT = 2
_NAME = re.compile(r"checkpoint-(0|[1-9][0-9]{0,17})")

# The errors of writing a file that a SaveError explains.
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
_BROKEN = (errno.EIO, errno.ENXIO, errno.ENODEV)
_EXPLAINED = (*_NO_SPACE, errno.EFBIG, *CLOSED, *_GONE, *_BROKEN)


def wanted_checkpoint(given: str | Path | bool | None) -> str | Path | None:
    """Return what a setting or a flag asks to resume from: ``AUTO``, a path, or ``None`` for the beginning."""
    if not isinstance(given, str):
        return AUTO if given is True else given or None
    word = given.lower()
    return AUTO if word in ("", AUTO, "true") else None if word in ("false", "none") else given


def step_of(folder: Path) -> int | None:
    """Return the step in the name of a checkpoint; ``None`` for other names."""
    match = _NAME.fullmatch(folder.name)
    return int(match[1]) if match else None


def checkpoints(run: Path) -> list[Path]:
    """Return the checkpoint folders of a run by step, whether or not they are complete."""
    if not run.is_dir():
        return []
    found = [(step, folder) for folder in run.iterdir() if (step := step_of(folder)) is not None]
    return [folder for _, folder in sorted(found) if folder.is_dir()]


def verify_named(folder: Path, *, contents: bool = True) -> Path:
    """Return the checkpoint that was asked for by its path, verified as by ``verify``; a run is none."""
    inner = checkpoints(folder)
    if inner and not (folder / MANIFEST_FILE).exists():
        require_ours(inner[-1])
        raise CheckpointError(
            f"{folder}: is a run, not a checkpoint; give {inner[-1]}, or for the newest that is whole --resume"
            " alone (in Python: resume_from_checkpoint=True)"
        )
    verify(folder, contents=contents)
    return folder


def newest_verified(run: Path, report: Callable[[str], object]) -> Path | None:
    """Return the newest checkpoint of a run that verifies, and move damaged newer ones into quarantine.

    ``report`` is called with a line for each damaged one. The result is ``None`` if the run never finished a save. A
    ``CheckpointError`` says that checkpoints exist, here or in quarantine, but none is intact, or that all are another
    trainer's, which stay where they are: the user decides whether to start over.
    """
    found = checkpoints(run)
    others = [folder for folder in found if file_of_another_trainer(folder) is not None]
    for folder in reversed(found):
        if folder in others:
            continue
        try:
            manifest = verify(folder)
            if manifest.step != step_of(folder):
                raise CheckpointError(f"{folder}: is of step {manifest.step}; expected the step of its name")
        except CheckpointError as error:
            report(f"skipped {error}; it was moved to {set_aside(folder)}")
        else:
            return folder
    if others:
        require_ours(others[-1])
    quarantine = run / QUARANTINE_FOLDER
    inside = quarantine.iterdir() if quarantine.is_dir() else ()
    damaged = [folder for folder in inside if folder.is_dir() and not is_unfinished(folder)]
    if damaged:
        raise CheckpointError(
            f"{run}: none of its checkpoints is complete ({len(damaged)} in {quarantine}); put a good copy of one into"
            " the run folder, or begin again in another folder"
        )
    return None


def set_aside(folder: Path) -> Path:
    """Move a checkpoint into the quarantine of its run, and return its new path."""
    quarantine = folder.parent / QUARANTINE_FOLDER
    quarantine.mkdir(exist_ok=True)
    target, number = quarantine / folder.name, 1
    while os.path.lexists(target):
        number += 1
        target = quarantine / f"{folder.name}.{number}"
    folder.rename(target)
    flush_to_disk(quarantine)
    flush_to_disk(folder.parent)
    return target


def rotate(run: Path, limit: int | None, keep: Path | None = None) -> list[Path]:
    """Remove the oldest checkpoints of a run beyond ``limit`` (``save_total_limit``), and return their folders.

    The two newest complete ones always stay, and so does ``keep``, the best one so far. Folders without a manifest are
    left alone. Nothing is removed if the limit is ``None`` or not positive.
    """
    if limit is None or limit <= 0:
        return []
    complete = [folder for folder in checkpoints(run) if not folder.is_symlink() and _is_complete(folder)]
    staying = set(complete[-MIN_KEPT:])
    staying |= {folder for folder in complete if keep is not None and folder.name == keep.name}
    surplus = max(0, len(complete) - max(limit, MIN_KEPT))
    removed = [folder for folder in complete if folder not in staying][:surplus]
    for folder in removed:
        retract(folder)  # so that an interrupted removal leaves an unfinished save, and no incomplete checkpoint
        shutil.rmtree(folder, ignore_errors=True)
    return removed


def _is_complete(folder: Path) -> bool:
    """Return whether there is a manifest and every file has its size; hashing all would take as long as saving."""
    try:
        return verify(folder, contents=False).step == step_of(folder)
    except CheckpointError:
        return False


@contextmanager
def clear_save_errors(folder: Path, needed_bytes: Callable[[], int]) -> Iterator[None]:
    """Raise a ``SaveError`` of one line if the disk is full, read-only, broken or gone; other errors pass.

    The folder is ``RUN/checkpoint-STEP``, or the run folder for the final model. ``needed_bytes``, the size of what is
    written, is called only after an error.
    """

    def explain(fault: int, error: Exception) -> None:
        if fault in _EXPLAINED:
            raise SaveError(_message(folder, fault, needed_bytes()), folder_is_gone=fault in _GONE) from error

    with explained(explain):
        yield


def give_back(folder: Path) -> None:
    """Remove the files of a save that failed, to free their space; anything but an unfinished save is left alone.

    To be called when no process writes there any more.
    """
    if is_unfinished(folder):
        shutil.rmtree(folder, ignore_errors=True)


def _message(folder: Path, fault: int, needed: int) -> str:
    last = newest_intact(folder.parent if step_of(folder) is not None else folder)
    left = f"{last.name} is complete" if last else "no checkpoint was saved before"
    go_on = ", then go on with --resume (in Python: train(resume_from_checkpoint=True))" if last else ""
    space = _space(folder, needed) if fault in _NO_SPACE else ""
    return f"{folder}: not saved ({in_words(fault)}){space}; {left}; {_what_to_do(fault)}{go_on}"


def _space(folder: Path, needed: int) -> str:
    begun = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if is_unfinished(folder) else 0
    free = free_bytes(folder) + begun  # ``give_back`` removes what was begun
    text = f": it takes {in_units(needed)}, and {in_units(free)} are free there"
    # With enough free bytes, a quota is used up, or the number of files.
    return text if free < needed else f"{text}, though not for this user or not for one more file (quota, df -i)"


def _what_to_do(fault: int) -> str:
    if fault in _NO_SPACE:
        return "make room (a smaller save_total_limit keeps fewer checkpoints)"
    if fault == errno.EFBIG:
        return "raise the limit on the size of files (ulimit -f)"
    if fault in _GONE:
        return "the run folder was removed while the run was going on"
    if fault in CLOSED:
        return "make the folder writable"
    return "check the disk (dmesg has details)"


def newest_intact(run: Path) -> Path | None:
    """Return the newest checkpoint that verifies, and move nothing."""
    for folder in reversed(checkpoints(run)):
        try:
            verify(folder)
        except CheckpointError:
            continue
        return folder
    return None
