"""Move the tensors of a loader item in one piece: from a worker, into pinned memory, onto a device.

    item      {"micro_batches": [{"input_ids": Tensor, "forest": ForestLayout, ...}, ...], "loaded": ...}
    buffer    | input_ids ... | depth_T ... | input_ids ... |      bytes; the tensors are views of them

A micro-batch has about 20 tensors. Each of them by itself would take a file descriptor on its way from a worker, and a
copy that the host waits for on its way to a GPU.

An item may hold anything beside tensors, and a collator of the user's may nest it as it likes: what is not a plain
tensor in CPU memory stays as it is.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import fields, replace
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .forest import ForestLayout

_ALIGNMENT = 64  # bytes; every tensor begins at a multiple, as in PyTorch's own allocations


class LoaderItem(dict):
    """What a data loader yields: a dict whose tensors are pinned in one piece."""

    def pin_memory(self) -> LoaderItem:
        """Return the same item in pinned memory; data loaders call it where ``dataloader_pin_memory`` is on."""
        if not (tensors := _tensors_of(self)):
            return self
        buffer, places = _their_buffer(tensors) or _in_one_buffer(tensors)  # what a worker sent lies in one
        return _with_tensors_in(buffer.pin_memory(), places, self)


class Parcel:
    """An item on its way out of a worker: its tensors as one array of bytes, everything else pickled.

    Both go through the pipe of the loader's queue, and take no file descriptor and no shared memory, of which a
    container has little. They are pickled here, where an error is still that of the worker: one in the thread that
    feeds the queue is only printed, and the main process waits for ever.
    """

    def __init__(self, item: LoaderItem):
        buffer, places = _in_one_buffer(_tensors_of(item))
        self._bytes = buffer.numpy()
        self._rest = pickle.dumps(_walked(item, lambda leaf: places.get(id(leaf), leaf)))

    def __reduce__(self) -> Any:
        return _unpacked, (self._bytes, self._rest)


def _unpacked(array: np.ndarray, rest: bytes) -> LoaderItem:
    views = _Views(torch.from_numpy(array))
    return _walked(pickle.loads(rest), lambda leaf: views.at(leaf) if isinstance(leaf, _Place) else leaf)


def on_device(data: Any, device: torch.device, *, pin: bool) -> Any:
    """Copy the tensors of an item, a micro-batch of it or any batch to a device, all of them at once.

    Args:
        data: Tensors in any nesting; those that are on a device already stay where they are.
        device: Where to.
        pin: Whether to copy from pinned memory, for which a host does not wait. (On CUDA; elsewhere a copy that is not
            waited for may read memory that was freed.)

    Returns:
        The same structure, with the tensors on the device; on a CPU ``data`` itself.
    """
    tensors = _tensors_of(data) if device.type != "cpu" else []
    if not tensors:
        return data
    buffer, places = _their_buffer(tensors) or _in_one_buffer(tensors)
    is_cuda = device.type == "cuda"
    if pin and is_cuda and not buffer.is_pinned():
        buffer = buffer.pin_memory()
    return _with_tensors_in(buffer.to(device, non_blocking=is_cuda), places, data)


# ---- Buffers


class _Place(NamedTuple):
    """Where a tensor lies in a buffer."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int  # in bytes

    @property
    def end(self) -> int:
        """One past its last byte."""
        return self.start + prod(self.shape) * self.dtype.itemsize


class _Views:
    """Make the tensors that lie in a buffer; one of each dtype is over all of it, so that each takes one call."""

    def __init__(self, buffer: Tensor):
        self._buffer = buffer
        self._whole: dict[torch.dtype, Tensor] = {}

    def at(self, place: _Place) -> Tensor:
        """Return the tensor at a place."""
        dtype, shape, start = place
        if dtype not in self._whole:
            self._whole[dtype] = self._buffer.view(dtype)
        strides = [prod(shape[dim + 1 :]) for dim in range(len(shape))]
        return self._whole[dtype].as_strided(shape, strides, start // dtype.itemsize)


Buffered = tuple[Tensor, dict[int, _Place]]  # bytes, uint8 [N], and the places of tensors in it by their ``id``


def _in_one_buffer(tensors: Sequence[Tensor]) -> Buffered:
    """Copy tensors into a new buffer; views of the same memory, such as depths and position ids, take one place."""
    places: dict[int, _Place] = {}
    starts: dict[tuple[Any, ...], int] = {}
    storages = [tensor.untyped_storage() for tensor in tensors]  # kept, so that none gets the ``id`` of another
    end = 0
    for tensor, storage in zip(tensors, storages, strict=True):
        same = (id(storage), tensor.storage_offset(), tensor.numel(), tensor.dtype)
        start = starts.setdefault(same if tensor.is_contiguous() else (id(tensor),), end)
        place = places[id(tensor)] = _Place(tensor.dtype, tuple(tensor.shape), start)
        end = max(end, _aligned(place.end))
    buffer = torch.empty(end, dtype=torch.uint8)
    views = _Views(buffer)
    for tensor in {places[id(tensor)].start: tensor for tensor in tensors if tensor.numel()}.values():
        views.at(places[id(tensor)]).copy_(tensor)
    return buffer, places


def _their_buffer(tensors: Sequence[Tensor]) -> Buffered | None:
    """Return the part of a buffer in which all the tensors lie close together; ``None`` if there is no such part."""
    storage = tensors[0].untyped_storage()
    if not all(tensor.untyped_storage() is storage and tensor.is_contiguous() for tensor in tensors):
        return None
    starts = [int(tensor.storage_offset()) * tensor.itemsize for tensor in tensors]
    first = min(starts)
    places = {
        id(tensor): _Place(tensor.dtype, tuple(tensor.shape), start - first)
        for tensor, start in zip(tensors, starts, strict=True)
    }
    size = _aligned(max(place.end for place in places.values()))
    filled = sum(_aligned(tensor.nbytes) for tensor in tensors)
    if first % _ALIGNMENT or size > filled or first + size > storage.nbytes():
        return None
    if any(place.start % place.dtype.itemsize for place in places.values()):
        return None
    one = tensors[0]
    return one.as_strided((size // one.itemsize,), (1,), first // one.itemsize).view(torch.uint8), places


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _with_tensors_in(buffer: Tensor, places: Mapping[int, _Place], data: Any) -> Any:
    """Return ``data`` with the tensors that lie in a buffer, in place of those that have a place in it."""
    views = _Views(buffer)
    return _walked(data, lambda leaf: views.at(places[id(leaf)]) if id(leaf) in places else leaf)


# ---- What an item is made of


def _tensors_of(data: Any) -> list[Tensor]:
    """List the plain tensors in CPU memory; a subclass, a sparse one or one with a gradient is left as it is."""
    plain = (Tensor, type(torch.empty(0)))  # the second is another one under a mode of torch's, as in tests
    found: list[Tensor] = []

    def note(leaf: Any) -> Any:
        is_plain = type(leaf) in plain and leaf.device.type == "cpu" and leaf.layout == torch.strided
        if is_plain and not (leaf.requires_grad or leaf.is_quantized or leaf.is_nested):
            found.append(leaf)
        return leaf

    _walked(data, note)
    return found


def _walked(data: Any, change: Callable[[Any], Any]) -> Any:
    """Return nested data with its leaves changed; what has no changed leaf in it is the same object."""
    if isinstance(data, ForestLayout):
        values = {field.name: getattr(data, field.name) for field in fields(data)}
        changed = {name: change(value) for name, value in values.items() if isinstance(value, Tensor | _Place)}
        return replace(data, **changed) if any(value is not values[name] for name, value in changed.items()) else data
    if isinstance(data, Mapping):
        new = {key: _walked(value, change) for key, value in data.items()}
        if all(new[key] is value for key, value in data.items()):
            return data
        if not isinstance(data, MutableMapping):
            return type(data)(new)  # type: ignore[call-arg]
        clone = copy.copy(data)
        clone.update(new)
        return clone
    if isinstance(data, list | tuple) and not isinstance(data, _Place):
        parts = [_walked(value, change) for value in data]
        if all(new is value for new, value in zip(parts, data, strict=True)):
            return data
        return type(data)(*parts) if hasattr(data, "_fields") else type(data)(parts)
    return change(data)
