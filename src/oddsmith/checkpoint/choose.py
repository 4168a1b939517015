"""Which checkpoint a run goes on from, and which may go. Needs no torch.

Names decide, never times: a clock may have been wrong, and a copy has the time of its copying. Only ``checkpoint-STEP``
is a name of ours; whatever else lies in a run folder is somebody's.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from ..errors import CheckpointError
from ..system.files import flush_to_disk
from ..system.run_folder import QUARANTINE_FOLDER
from .manifest import is_unfinished, retract, verify

LEAST_KEPT = 2
_NAME = re.compile(r"checkpoint-(0|[1-9][0-9]{0,17})")


def step_of(folder: Path) -> int | None:
    """The step in a checkpoint's name; ``None`` where it is no name of ours."""
    match = _NAME.fullmatch(folder.name)
    return int(match[1]) if match else None


def checkpoints(run: Path) -> list[Path]:
    """The folders of a run that are named as checkpoints, by step; whether they are whole is not looked at."""
    if not run.is_dir():
        return []
    found = [(step, folder) for folder in run.iterdir() if (step := step_of(folder)) is not None]
    return [folder for _, folder in sorted(found) if folder.is_dir()]


def newest_verified(run: Path, tell: Callable[[str], object]) -> Path | None:
    """The newest checkpoint of a run that verifies. Those that are passed over are put into quarantine.

    Args:
        run: The run folder.
        tell: Gets a line for each that is passed over: what is wrong with it, and where it is now.

    Returns:
        The checkpoint; ``None`` where the run never finished a save.

    Raises:
        CheckpointError: There are checkpoints, now or in quarantine, and none is good: starting over is not ours to
            decide.
    """
    for folder in reversed(checkpoints(run)):
        try:
            manifest = verify(folder)
            if manifest.step != step_of(folder):
                raise CheckpointError(f"{folder}: is of step {manifest.step}; expected the step of its name")
        except CheckpointError as error:
            tell(f"passed over {error}; it lies in {set_aside(folder)} now")
        else:
            return folder
    damaged = [folder for folder in _in_quarantine(run) if not is_unfinished(folder)]
    if damaged:
        raise CheckpointError(
            f"{run}: none of its checkpoints is whole ({len(damaged)} in {run / QUARANTINE_FOLDER}); put a good copy of"
            " one into the run folder, or begin again in another folder"
        )
    return None


def set_aside(folder: Path) -> Path:
    """Move a checkpoint into the quarantine of its run.

    Args:
        folder: The checkpoint.

    Returns:
        Where it is now.
    """
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
    """Remove the oldest checkpoints of a run beyond ``limit``.

    The newest two that are whole always stay, and so does ``keep``. What has no manifest is not touched: it is no
    checkpoint of ours.

    Args:
        run: The run folder.
        limit: How many to keep (``save_total_limit``); all where it is ``None`` or not positive.
        keep: The best one so far.

    Returns:
        What was removed.
    """
    if limit is None or limit <= 0:
        return []
    whole = [folder for folder in checkpoints(run) if not folder.is_symlink() and _is_whole(folder)]
    staying = set(whole[-LEAST_KEPT:])
    staying |= {folder for folder in whole if keep is not None and folder.name == keep.name}
    removed: list[Path] = []
    for folder in whole:
        if len(whole) - len(removed) <= max(limit, LEAST_KEPT):
            break
        if folder not in staying:
            remove(folder)
            removed.append(folder)
    return removed


def remove(folder: Path) -> None:
    """Remove a checkpoint, in an order in which a cut leaves no half checkpoint."""
    retract(folder)
    shutil.rmtree(folder, ignore_errors=True)


def _is_whole(folder: Path) -> bool:
    """Whether the manifest is there and every file has its size; reading all of them would take as long as saving."""
    try:
        return verify(folder, contents=False).step == step_of(folder)
    except CheckpointError:
        return False


def _in_quarantine(run: Path) -> list[Path]:
    quarantine = run / QUARANTINE_FOLDER
    return sorted(folder for folder in quarantine.iterdir() if folder.is_dir()) if quarantine.is_dir() else []
