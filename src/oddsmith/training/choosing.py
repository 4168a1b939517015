"""Choose the checkpoint from which a run goes on: whole, and the same on every node."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from ..checkpoint.manifest import start_anew, verify
from ..checkpoint.store import AUTO, newest_intact, newest_verified, set_aside, verify_named
from ..errors import CheckpointError
from ..system.launchers import may_restart
from ..system.run_folder import Event, read_events
from .nodes import node, of_writers, on_main_process


def choose_checkpoint(
    wanted: str | Path | bool, run: Path, warn: Callable[[str], object], *, on_each_node: bool = False
) -> Path | None:
    """Choose the checkpoint to resume from; the main process chooses and verifies it for all.

    Args:
        wanted: That of :meth:`ORPOTrainer.train`.
        run: The run folder.
        warn: Called with a line for each checkpoint that is skipped.
        on_each_node: Whether each node has checkpoints of its own (``save_on_each_node``): the first process of each
            verifies them, and what is not whole everywhere is skipped.

    Returns:
        The checkpoint, ``None`` for the beginning.

    Raises:
        CheckpointError: None is complete, or the one asked for is not.
    """
    named = None if isinstance(wanted, bool) or wanted == AUTO else Path(wanted)
    while True:
        folder = on_main_process(lambda: _newest(run, warn, wanted) if named is None else verify_named(named))
        if not on_each_node:
            return folder
        own = folder if folder is None or named is not None else run / folder.name
        fault = next(filter(None, of_writers(partial(_fault_here, own, run), True)), None)
        if fault is None:
            return own
        if named is not None or own is None:
            raise CheckpointError(fault)
        moved = of_writers(partial(_set_aside, own), True)
        on_main_process(partial(warn, f"skipped {fault}; it was moved to {moved[0]} on every node"))


def _set_aside(folder: Path) -> Path | None:
    return set_aside(folder) if folder.is_dir() else None


def _newest(run: Path, warn: Callable[[str], object], wanted: object) -> Path | None:
    newest = newest_verified(run, warn)
    if newest is None and _is_done(run):
        raise CheckpointError(f"{run}: is a run that is done and kept no checkpoint; {start_anew(run)}")
    if newest is None and wanted is True and not may_restart():  # who may be restarted asks from the first start
        raise CheckpointError(f"{run}: holds no checkpoint to resume from; leave out resume_from_checkpoint")
    return newest


def _fault_here(folder: Path | None, run: Path) -> str | None:
    """Return why this node cannot go on from a checkpoint, or from the beginning."""
    if folder is None:
        if (last := newest_intact(run)) is None:
            return None
        return f"{last}: lies on {node()}, but the first node has no checkpoint; copy it there, or remove it"
    fault = fault_of(folder)
    return fault and f"{fault} (on {node()})"


def fault_of(folder: Path) -> str | None:
    """Return why a checkpoint is not whole, ``None`` if it is."""
    try:
        verify(folder)
    except CheckpointError as error:
        return str(error)
    return None


def _is_done(run: Path) -> bool:
    """Return whether a training ended in a run folder."""
    last = next(reversed(read_events(run)), None)
    return last is not None and last["event"] == Event.END and last["step"] > 0
