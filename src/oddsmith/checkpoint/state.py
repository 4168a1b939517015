"""State that a resumed run needs besides weights: of optimizer and random generators, as safetensors and JSON.

    NAME.json          the tree: JSON, and ``{"@": kind, ...}`` for values that JSON has no form for
    NAME.safetensors   its tensors, by number; a tensor that occurs twice is written once

Reading such files runs no code. Each process has a *rank state* in ``process-RANK``: its random states and the states
of the trainer's parts, such as sums that are not logged yet.
"""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import CheckpointError
from ..system.strict_json import read_json
from .manifest import Manifest, first_line

TAG = "@"
MAX_JSON_BYTES = 256 * 2**20


def write_state(folder: Path, name: str, tree: Any) -> None:
    """Write a nested state.

    Args:
        folder: The checkpoint.
        name: Of the files, without an ending.
        tree: Mappings, lists and tuples of tensors, arrays, numbers, texts, bytes and ``None``.

    Raises:
        TypeError: It contains something else; the message names its place in the tree.
        OSError: It cannot be written.
    """
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(_encoded(tree, tensors, {}, name), allow_nan=False)
    if tensors:
        save_file(tensors, folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(text, encoding="utf-8")


def read_state(folder: Path, name: str) -> Any:
    """Read a nested state, its tensors on the CPU.

    Args:
        folder: The checkpoint.
        name: Of the files, without an ending.

    Returns:
        The tree as it was written, with members of enumerations as their values.

    Raises:
        CheckpointError: It is missing, or not in the form that ``write_state`` writes.
    """
    file = folder / f"{name}.json"
    try:
        if file.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"larger than {MAX_JSON_BYTES:,} bytes")
        tree = read_json(file.read_text(encoding="utf-8"))
        return _decoded(tree, _tensors(folder / f"{name}.safetensors"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: {file.name} is missing, so a run cannot go on from here") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: {file.name} is damaged ({first_line(error)})") from error


def has_state(folder: Path, name: str) -> bool:
    """Return whether a state of this name was written."""
    return (folder / f"{name}.json").is_file()


def _tensors(file: Path) -> dict[str, torch.Tensor]:
    if not os.path.lexists(file):
        return {}
    with safe_open(file, framework="pt") as opened:
        return {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - not a mapping


def _encoded(value: Any, tensors: dict[str, torch.Tensor], known: dict[tuple, str], place: str) -> Any:
    """Return a value as JSON, and add its tensors to ``tensors``: those ``known`` by memory and shape only once."""
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {TAG: "float", "value": str(value)}
    if isinstance(value, torch.Tensor):
        return {TAG: "tensor", "key": _key_of(value, tensors, known)}
    if isinstance(value, np.ndarray | np.generic):
        return {TAG: "array", "key": _key_of(torch.from_numpy(np.ascontiguousarray(value)), tensors, known)}
    if isinstance(value, bytes):
        return {TAG: "bytes", "value": value.hex()}
    if isinstance(value, list | tuple):
        items = [_encoded(item, tensors, known, f"{place}[{i}]") for i, item in enumerate(value)]
        return items if isinstance(value, list) else {TAG: "tuple", "items": items}
    if isinstance(value, Mapping):
        pairs = [(key, _encoded(item, tensors, known, f"{place}[{key!r}]")) for key, item in value.items()]
        if all(isinstance(key, str) for key, _ in pairs) and TAG not in value:
            return dict(pairs)
        return {TAG: "map", "items": [[_encoded(key, tensors, known, place), item] for key, item in pairs]}
    raise TypeError(f"{place} is a {type(value).__name__}, which cannot be written without pickling it")


def _key_of(tensor: torch.Tensor, tensors: dict[str, torch.Tensor], known: dict[tuple, str]) -> str:
    tensor = tensor.detach()
    identity = (tensor.device, tensor.dtype, tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
    if tensor.numel() and identity in known:
        return known[identity]
    key = str(len(tensors))
    # Copied, because safetensors refuses tensors that share memory.
    shares_memory = tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size()
    tensors[key] = tensor.clone() if shares_memory else tensor.contiguous()
    known[identity] = key
    return key


def _decoded(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_decoded(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    kind = value.get(TAG)
    if kind is None:
        return {key: _decoded(item, tensors) for key, item in value.items()}
    if kind == "tensor":
        return tensors[value["key"]]
    if kind == "array":
        return tensors[value["key"]].numpy()
    if kind == "tuple":
        return tuple(_decoded(item, tensors) for item in value["items"])
    if kind == "map":
        return {_decoded(key, tensors): _decoded(item, tensors) for key, item in value["items"]}
    if kind == "float":
        return float(value["value"])
    if kind == "bytes":
        return bytes.fromhex(value["value"])
    raise ValueError(f"the unknown kind {kind!r}")


def write_process(folder: Path, rank: int, processes: int, parts: dict[str, Any]) -> None:
    """Write a rank state.

    Args:
        folder: The checkpoint.
        rank: Of the process.
        processes: Number of processes.
        parts: Name of a part of the trainer -> its state.

    Raises:
        TypeError: A part has a state that only pickling could write.
        OSError: It cannot be written.
    """
    write_state(folder, f"process-{rank}", {"random": random_states(alone=processes == 1), "parts": parts})


def read_process(folder: Path, manifest: Manifest, rank: int, processes: int) -> dict[str, Any]:
    """Read a rank state.

    Where the number of processes has changed, the sums of all old processes are divided evenly among the new ones, so
    that their total is the same. A rank that did not exist before has no random states.

    Args:
        folder: The checkpoint.
        manifest: Its manifest.
        rank: Of this process.
        processes: Number of processes now.

    Returns:
        ``{"random": states or None, "parts": name -> state}``.

    Raises:
        CheckpointError: It is missing or damaged.
    """
    if processes == manifest.world_size:
        return read_state(folder, f"process-{rank}")
    old = [read_state(folder, f"process-{number}") for number in range(manifest.world_size)]
    try:
        return _redistributed(old, rank, processes)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{folder}: its process-*.json hold something else than rank states") from error


def _redistributed(old: list[dict[str, Any]], rank: int, processes: int) -> dict[str, Any]:
    """Return the state of one of ``processes`` ranks after all the old ones."""
    parts = dict(old[0]["parts"])
    # The parts that sum over the pairs of one process; all others are the same in all processes.
    totals = [state["parts"]["meter"]["total"] for state in old]
    known = [total for total in totals if total is not None]
    parts["meter"] = {**parts["meter"], "total": torch.stack(known).sum(dim=0) / processes if known else None}
    losses = [state["parts"]["loss"]["unlogged"] for state in old]  # each is logged as a mean over processes
    parts["loss"] = {**parts["loss"], "unlogged": torch.stack(losses).mean(dim=0)}
    return {"random": old[rank]["random"] if rank < len(old) else None, "parts": parts}


def random_states(*, alone: bool) -> dict[str, Any]:
    """Return the states of all random generators of this process, by name.

    With ``alone`` these include the generators of all devices of the machine, otherwise only of this process's device.
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
    """Set all random generators of this process to what :func:`random_states` returned.

    ``None`` is for a rank that did not exist before: its generator starts from the seed of the run plus its rank.
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
