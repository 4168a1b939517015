"""Write a model whose weights are sharded over processes as one, and read it into its shards again.

    plan        names, shapes and types of the tensors as ``save_pretrained`` would store them: tied ones once
    header      of each file, made of the plan; files have their full length from then on
    layers      one after the other: all processes gather it, the writer puts it where the header says

No process holds more than one layer beyond its share.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.tensor import distribute_tensor
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..errors import CheckpointError, SaveError
from ..system.outside import read_text
from ..system.shards import gathered, own_share, whole_shape
from ..system.strict_json import read_object
from .loading.completeness import require_complete
from .text_part import as_stored, is_multimodal

FILE_BYTES = 50 * 10**9  # of one file at most, as in transformers
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.bool: "BOOL",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
}  # fmt: skip
_LAYER = re.compile(r"^.*?\.\d+\.")


def write_whole(model: Any, folder: Path, device: torch.device, *, is_writer: bool) -> None:
    """Write the weights of a transformers model; all processes have to call this, and writers write.

    Args:
        model: The model, unwrapped, without an adapter.
        folder: Where to; its ``config.json`` is written by others.
        device: On which processes communicate.
        is_writer: Whether this process writes: one on each disk.

    Raises:
        OSError: A file could not be written; raised when all layers were gathered, so that nobody waits.
    """
    names = _names(model)
    plan = revert_weight_conversion(model, names)
    with ExitStack() as stack:
        writer = _Writer(stack, folder, plan) if is_writer else None
        for layer in _layers(model, names, device):
            if writer is not None:
                writer.write(revert_weight_conversion(model, layer))
        if writer is not None:
            writer.finish()


def is_stored_by_its_names(model: Any) -> bool:
    """Return whether the tensors of a model are stored under the names and in the shapes that they have in it."""
    names = _names(model)
    return {name: value.shape for name, value in revert_weight_conversion(model, names).items()} == {
        name: value.shape for name, value in names.items()
    }


def read_whole(model: Any, folder: Path) -> None:
    """Read weights that ``write_whole`` wrote into the shards of a model; every process reads its own.

    ``CheckpointError`` where tensors are missing, or belong to another model.
    """
    state = model.state_dict()
    names = _names(model)
    with ExitStack() as stack:
        places: dict[str, Any] = {}
        for file in _weight_files(folder):
            opened = stack.enter_context(safe_open(file, framework="pt"))
            places |= dict.fromkeys(opened.keys(), opened)
        missing, unexpected = names.keys() - places.keys(), places.keys() - names.keys()
        require_complete(str(folder), missing, unexpected, CheckpointError)
        for name in names:
            tensor = state[name]
            stored = places[name].get_tensor(name).to(tensor.dtype)
            if hasattr(tensor, "device_mesh"):
                on_device = stored.to(tensor.to_local().device)
                stored = distribute_tensor(on_device, tensor.device_mesh, tensor.placements, src_data_rank=None)
            own_share(tensor).copy_(own_share(stored))


def adapter_state(model: Any, device: torch.device, select: Any) -> dict[str, Tensor]:
    """Return the weights of a model wrapped by PEFT with those that are saved in whole, the others without storage.

    All processes have to call this. ``select(state)`` returns what PEFT saves of a state.
    """
    state = dict(_empty(model))
    wanted = {id(value) for value in select(dict(state)).values()}
    saved = {name: value for name, value in state.items() if id(value) in wanted}
    for layer in _layers(model, saved, device):
        state |= layer
    return state


def require_weights(folder: Path) -> None:
    """Read back the headers of the weights that were written into a folder; ``SaveError`` where they are not whole."""
    try:
        files = _weight_files(folder)
        for file in files:
            with safe_open(file, framework="pt") as opened:
                if not opened.keys():
                    raise SaveError(f"{file}: was written without any tensor")
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise SaveError(f"{folder}: the weights that were written there cannot be read back: {error}") from error
    if not files:
        raise SaveError(f"{folder}: no weights were written there")


def _weight_files(folder: Path) -> list[Path]:
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if index.is_file():
        named = read_object(read_text(index))["weight_map"].values()
        return [folder / name for name in dict.fromkeys(named)]
    return [folder / name for name in (SAFE_WEIGHTS_NAME, ADAPTER_WEIGHTS) if (folder / name).is_file()]


# ---- What is stored


def _empty(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a model's state by name, with the shape of the whole and without storage."""
    for name, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            continue
        yield name, torch.empty(whole_shape(value), dtype=value.dtype, device="meta")


def _names(model: Any) -> dict[str, Tensor]:
    ignored = set(model._keys_to_ignore_on_save or ())
    names = {name: value for name, value in _empty(model) if name not in ignored}
    names = remove_tied_weights_from_state_dict(names, model)
    return as_stored(model, names) if is_multimodal(model) else names


def _layers(model: Any, names: Mapping[str, Tensor], device: torch.device) -> Iterator[dict[str, Tensor]]:
    """Yield whole tensors on the CPU, a layer at a time, in the types of ``names``; all processes have to take part."""
    state = model.state_dict(keep_vars=True)
    for _, layer in groupby(names, key=lambda name: (_LAYER.match(name) or [name])[0]):
        values = {name: state[name] for name in layer}
        with gathered(values.values()):
            yield {name: _whole(value, device).to("cpu", names[name].dtype) for name, value in values.items()}


def _whole(value: Any, device: torch.device) -> Tensor:
    value = value.detach()
    return value.to(device).full_tensor() if hasattr(value, "full_tensor") else value


# ---- Files


class _Writer:
    """Files of the tensors of a plan, whose headers are written first."""

    def __init__(self, stack: ExitStack, folder: Path, plan: Mapping[str, Tensor]):
        self._stack, self._folder = stack, folder
        self._left = set(plan)
        self._places: dict[str, tuple[BinaryIO, int]] = {}
        self._files: dict[str, list[str]] = _split(plan)
        self._fault: OSError | None = None
        self._attempt(lambda: self._begin(plan))

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        """Write tensors of the plan."""
        self._left -= tensors.keys()
        self._attempt(lambda: self._put(tensors))

    def finish(self) -> None:
        """Put the files in their places, with an index where there are several."""
        if self._fault is not None:
            for name in self._files:
                (self._folder / f"{name}.partial").unlink(missing_ok=True)
            raise self._fault
        if self._left:
            raise SaveError(f"{self._folder}: {len(self._left)} tensors of the model were not gathered")
        self._stack.close()  # flushes and closes the files
        if len(self._files) > 1:
            index = {"metadata": {}, "weight_map": {key: name for name, keys in self._files.items() for key in keys}}
            (self._folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2), encoding="utf-8")
        for name in self._files:
            (self._folder / f"{name}.partial").replace(self._folder / name)

    def _attempt(self, act: Any) -> None:
        """Remember the first error: other processes go on gathering."""
        if self._fault is None:
            try:
                act()
            except OSError as error:
                self._fault = error

    def _begin(self, plan: Mapping[str, Tensor]) -> None:
        for name, keys in self._files.items():
            file = self._stack.enter_context((self._folder / f"{name}.partial").open("wb"))
            header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
            end = 0
            for key in keys:
                begin, end = end, end + plan[key].nbytes
                shape = list(plan[key].shape)
                header[key] = {"dtype": _DTYPES[plan[key].dtype], "shape": shape, "data_offsets": [begin, end]}
            text = json.dumps(header, separators=(",", ":")).encode()
            text += b" " * (-len(text) % 8)
            file.write(len(text).to_bytes(8, "little") + text)
            start = file.tell()
            file.truncate(start + end)
            self._places |= {key: (file, start + header[key]["data_offsets"][0]) for key in keys}

    def _put(self, tensors: Mapping[str, Tensor]) -> None:
        for key, tensor in tensors.items():
            file, place = self._places[key]
            file.seek(place)
            file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _split(plan: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Return the names of the files, and of the tensors in each."""
    parts: list[list[str]] = [[]]
    size = 0
    for key, value in plan.items():
        if parts[-1] and size + value.nbytes > FILE_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(key)
        size += value.nbytes
    if len(parts) == 1:
        return {SAFE_WEIGHTS_NAME: parts[0]}
    stem = SAFE_WEIGHTS_NAME.removesuffix(".safetensors")
    return {f"{stem}-{n:05d}-of-{len(parts):05d}.safetensors": part for n, part in enumerate(parts, start=1)}
