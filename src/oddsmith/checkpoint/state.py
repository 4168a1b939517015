"""Write and read nested states (of an optimizer, of random generators) as safetensors and JSON.

    NAME.json          the tree: JSON, and ``{"@": kind, ...}`` for values that JSON has no form for
    NAME.safetensors   its tensors, by number; a tensor that occurs twice is written once

Reading such files runs no code.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import CheckpointError
from ..system.outside import read_text, require_file
from ..system.strict_json import read_json
from .manifest import reason_of

TAG = "@"
MAX_JSON_BYTES = 256 * 2**20


def write_state(folder: Path, name: str, tree: Any) -> None:
    """Write a nested state: mappings, lists and tuples of tensors, arrays, numbers, texts, bytes and ``None``.

    ``TypeError`` for anything else, with its place in the tree; ``OSError`` if it cannot be written.
    """
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(_encoded(tree, tensors, {}, name), allow_nan=False)
    if tensors:
        save_file(tensors, folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(text, encoding="utf-8")


def read_state(folder: Path, name: str) -> Any:
    """Read a nested state, with its tensors on the CPU, and the values of enumerations instead of their members.

    ``CheckpointError`` if it is missing, or not in the form that ``write_state`` writes.
    """
    file = folder / f"{name}.json"
    try:
        if file.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"larger than {MAX_JSON_BYTES:,} bytes")
        tree = read_json(read_text(file, follow=False))
        return _decoded(tree, _tensors(folder / f"{name}.safetensors"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: {file.name} is missing, so a run cannot go on from here") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: {file.name} is damaged ({reason_of(error)})") from error


def has_state(folder: Path, name: str) -> bool:
    """Return whether a state of this name was written."""
    return (folder / f"{name}.json").is_file()


def _tensors(file: Path) -> dict[str, torch.Tensor]:
    if not os.path.lexists(file):
        return {}
    require_file(file, follow=False)
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
