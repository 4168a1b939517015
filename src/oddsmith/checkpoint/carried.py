"""What each process carries over a resume beside weights and optimizer: its random states and the sums it has begun."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import CheckpointError
from .manifest import Manifest
from .state import read_state, write_state


def file_name(rank: int) -> str:
    """The name of a process's state, without an ending."""
    return f"process-{rank}"


def write_process(folder: Path, rank: int, processes: int, parts: dict[str, Any]) -> None:
    """Write what a process carries.

    Args:
        folder: The checkpoint.
        rank: Of the process.
        processes: How many there are.
        parts: Name -> state of a part of the trainer.

    Raises:
        TypeError: A part has a state that only pickling could write.
        OSError: It cannot be written.
    """
    write_state(folder, file_name(rank), {"random": random_states(alone=processes == 1), "parts": parts})


def read_process(folder: Path, manifest: Manifest, rank: int, processes: int) -> dict[str, Any]:
    """Read what a process carries.

    Where their number is another one than before, the sums of all old processes are dealt out evenly among the new, so
    that their total is the same; a new process has no random state of its own.

    Args:
        folder: The checkpoint.
        manifest: Its manifest.
        rank: Of the process.
        processes: How many there are now.

    Returns:
        ``{"random": states or None, "parts": name -> state}``.

    Raises:
        CheckpointError: It is not there, or damaged.
    """
    if processes == manifest.world_size:
        return read_state(folder, file_name(rank))
    old = [read_state(folder, file_name(number)) for number in range(manifest.world_size)]
    try:
        return _dealt_out(old, rank, processes)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{folder}: its process-*.json hold something else than processes carry") from error


def _dealt_out(old: list[dict[str, Any]], rank: int, processes: int) -> dict[str, Any]:
    """What one of so many processes carries after all the old ones."""
    own = dict(old[0]["parts"])
    # The parts that sum over a process's own pairs; all others are alike in all processes.
    totals = [state["parts"]["meter"]["total"] for state in old]
    known = [total for total in totals if total is not None]
    own["meter"] = {**own["meter"], "total": torch.stack(known).sum(dim=0) / processes if known else None}
    losses = [state["parts"]["loss"]["unlogged"] for state in old]  # each is logged as a mean over processes
    own["loss"] = {**own["loss"], "unlogged": torch.stack(losses).mean(dim=0)}
    return {"random": old[rank]["random"] if rank < len(old) else None, "parts": own}


def random_states(*, alone: bool) -> dict[str, Any]:
    """The states of all random generators of this process.

    Args:
        alone: Whether this process may use every device of the machine; otherwise only its own counts.

    Returns:
        Name of the generator -> its state.
    """
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.random.get_rng_state(),
    }
    if torch.accelerator.is_available():
        module = torch.get_device_module()
        everywhere = alone and hasattr(module, "get_rng_state_all")
        states["device"] = module.get_rng_state_all() if everywhere else [module.get_rng_state()]
    return states


def restore_random_states(states: dict[str, Any] | None, *, seed: int, rank: int) -> None:
    """Set all random generators of this process.

    Args:
        states: What :func:`random_states` returned; ``None`` for a process that was not there before.
        seed: Of the run, for such a process.
        rank: Of this process.
    """
    if states is None:
        torch.manual_seed(seed + rank)
        return
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.random.set_rng_state(states["torch"])
    devices = states.get("device")
    if devices and torch.accelerator.is_available():
        module = torch.get_device_module()
        if hasattr(module, "set_rng_state_all") and len(devices) == module.device_count():
            module.set_rng_state_all(devices)
        else:
            module.set_rng_state(devices[0])
