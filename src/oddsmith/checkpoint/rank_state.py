"""Write and read the rank state of each process: its random states, and the states of the trainer's parts.

    process-RANK.json, .safetensors     {"version", "random", "parts": {name: {"version", "state"}}}

Each part defines its state and the version of it (:class:`CheckpointPart`). The part converts a state of an older
version; a newer one is refused here.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from ..errors import CheckpointError
from .manifest import Manifest
from .state import read_state, write_state
from .values import explained, whole

VERSION = 2  # 1 had no version, and the states of the parts without theirs


class CheckpointPart(Protocol):
    """A part of the trainer that continues in a resumed run.

    If the state of a part is a sum over the pairs of its process, the part also has ``redistribute(states,
    world_size)``: it turns the states of all former ranks into that of each of ``world_size`` ranks. All other states
    are equal on all ranks.
    """

    state_version: int

    def state_dict(self) -> dict[str, Any]:
        """Return the state, of tensors, numbers, texts, lists and mappings."""

    def load_state_dict(self, state: Mapping[str, Any], version: int) -> None:
        """Continue from a state that this version or an older one of the part returned."""


@dataclass
class RankState:
    """The rank state of one process."""

    random: dict[str, Any] | None = None  # of its random generators; None for a rank that did not exist then
    parts: dict[str, tuple[int, dict[str, Any]]] = field(default_factory=dict)  # name -> version and state


def file_name(rank: int) -> str:
    """Return the name of a process's state, without an ending."""
    return f"process-{rank}"


def rank_state(world_size: int, parts: Mapping[str, CheckpointPart]) -> dict[str, Any]:
    """Return the state of this process."""
    states = {name: {"version": part.state_version, "state": part.state_dict()} for name, part in parts.items()}
    return {"version": VERSION, "random": random_states(all_devices=world_size == 1), "parts": states}


def write_rank_state(folder: Path, rank: int, world_size: int, parts: Mapping[str, CheckpointPart]) -> None:
    """Write the state of a process into a checkpoint; ``TypeError`` if only pickling could write it."""
    write_state(folder, file_name(rank), rank_state(world_size, parts))


def read_rank_state(
    folder: Path, manifest: Manifest, rank: int, world_size: int, parts: Mapping[str, CheckpointPart]
) -> RankState:
    """Read the state of a process from a checkpoint, redistributed if another number of processes wrote it.

    ``parts`` are those of this trainer; states of other names are left out. ``CheckpointError`` if the state is missing
    or damaged, or a newer version wrote it.
    """
    if world_size == manifest.world_size:
        return _read(folder, rank, parts)
    ranks = [_read(folder, number, parts) for number in range(manifest.world_size)]
    state = RankState(ranks[rank].random if rank < len(ranks) else None, ranks[0].parts)
    for name, part in parts.items():
        redistribute = getattr(part, "redistribute", None)
        if redistribute is not None and name in state.parts:
            version = state.parts[name][0]
            with explained(folder, f"process-*.json ({name})"):
                state.parts[name] = version, redistribute([old.parts[name][1] for old in ranks], world_size)
    return state


def load_part(folder: Path, state: RankState, name: str, part: CheckpointPart) -> None:
    """Load the state of a part from a rank state; a part without a state there starts anew.

    ``CheckpointError`` if the state has another shape than this part writes.
    """
    if name in state.parts:
        version, content = state.parts[name]
        with explained(folder, f"process-*.json ({name})"):
            part.load_state_dict(content, version)


def _read(folder: Path, rank: int, parts: Mapping[str, CheckpointPart]) -> RankState:
    tree = read_state(folder, file_name(rank))
    with explained(folder, "process-*.json"):
        version = tree.get("version", 1)
        stored = {name: content for name, content in tree["parts"].items() if name in parts}
        if version == 1:
            stored = {name: {"version": 1, "state": content} for name, content in stored.items()}
        found = {name: (whole(content["version"]), dict(content["state"])) for name, content in stored.items()}
        newer = [name for name, (number, _) in found.items() if number > parts[name].state_version]
        if version > VERSION or newer:
            raise CheckpointError(
                f"{folder}: was written by a newer version of oddsmith ({', '.join(newer) or 'process state'}); install"
                " that version to go on from here"
            )
        return RankState(dict(tree["random"]), found)


def random_states(*, all_devices: bool) -> dict[str, Any]:
    """Return the states of all random generators of this process, by generator.

    ``all_devices`` includes every device of the machine, otherwise only the current one of this process.
    """
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.random.get_rng_state(),
    }
    if torch.accelerator.is_available():
        module = torch.get_device_module()
        everywhere = all_devices and hasattr(module, "get_rng_state_all")
        states["device"] = module.get_rng_state_all() if everywhere else [module.get_rng_state()]
    return states


def restore_random_states(states: dict[str, Any] | None, *, seed: int, rank: int) -> None:
    """Set all random generators of this process to what :func:`random_states` returned.

    A rank that did not exist then has no states, and takes the seed of the run plus its rank.
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
