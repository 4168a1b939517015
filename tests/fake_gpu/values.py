"""Values of tensors that have none: what the host reads from them, and what it writes to a file.

A whole training run reads numbers back (the guard's facts, log lines) and saves tensors. Here every such number is a
plausible constant, a wait for the device is recorded, and files hold zeros.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import safetensors
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

from .recorder import Record, place_in_code

_own_safe_open = safetensors.safe_open
Wait = Callable[[Tensor, str], None]


@contextlib.contextmanager
def readable(record: Record) -> Iterator[None]:
    """Let the host read fake tensors while inside."""

    def wait(tensor: Tensor, how: str) -> None:
        if tensor.device.type == "cuda":
            record.waits.append((how, place_in_code()))

    with contextlib.ExitStack() as stack:
        for owner, name, ours in _reading(wait):
            stack.enter_context(mock.patch.object(owner, name, ours))
        for module, name in _writers():
            stack.enter_context(mock.patch.object(module, name, _writing_zeros(getattr(module, name), wait)))
        for module in _readers():
            stack.enter_context(mock.patch.object(module, "safe_open", _RealFile))
        for module in (torch, torch.random):  # states that were saved are zeros
            stack.enter_context(mock.patch.object(module, "set_rng_state"))
        yield


def _constant(tensor: Tensor) -> Any:
    """Return what a number of a tensor is: no fact of the guard is true, and nothing is divided by 0."""
    if tensor.is_floating_point():
        return 0.0 if _is_fact() else 0.5
    return 0 if _is_fact() else 1


def _is_fact() -> bool:
    """Return whether the guard reads a number: something has gone wrong, if it is true."""
    return "training/guard.py" in place_in_code()


def _zeros(tensor: Tensor) -> Tensor:
    with unset_fake_temporarily():
        return torch.zeros(tensor.shape, dtype=tensor.dtype, device="cpu")


def _reading(wait: Wait) -> list[tuple[Any, str, Callable[..., Any]]]:
    """Return the methods that read values: whose they are, their names, and what takes their place."""

    def nested(tensor: Tensor) -> Any:
        values = _constant(tensor)
        for size in reversed(tensor.shape):
            values = [values] * (size if isinstance(size, int) else 0)  # of a selection: nothing is selected
        return values

    def reading(name: str, of_fake: Callable[[Tensor], Any]) -> Callable[..., Any]:
        own = getattr(Tensor, name)

        def read(self: Tensor, *arguments: Any, **others: Any) -> Any:
            if not isinstance(self, FakeTensor):
                return own(self, *arguments, **others)
            wait(self, name.strip("_"))
            return of_fake(self)

        return read

    own_storage_data_ptr, own_data_ptr = torch.UntypedStorage.data_ptr, Tensor.data_ptr

    def storage_data_ptr(self: torch.UntypedStorage) -> int:
        return self._cdata if self.device.type == "meta" else own_storage_data_ptr(self)

    def data_ptr(self: Tensor) -> int:  # nothing is read: it tells tensors from each other
        return self.untyped_storage()._cdata if isinstance(self, FakeTensor) else own_data_ptr(self)

    numpy = reading("numpy", lambda tensor: _zeros(tensor).numpy())
    tolist = reading("tolist", nested)
    return [
        (Tensor, "item", reading("item", _constant)),
        (Tensor, "__bool__", reading("__bool__", lambda tensor: not _is_fact())),
        (Tensor, "__float__", reading("__float__", lambda tensor: float(_constant(tensor)))),
        (Tensor, "__int__", reading("__int__", lambda tensor: int(_constant(tensor)))),
        (Tensor, "tolist", tolist),
        (FakeTensor, "tolist", tolist),
        (Tensor, "numpy", numpy),
        (FakeTensor, "numpy", numpy),
        (Tensor, "data_ptr", data_ptr),
        (torch.UntypedStorage, "data_ptr", storage_data_ptr),
    ]


def _writers() -> list[tuple[Any, str]]:
    """Return the names under which safetensors' ``save_file`` is called."""
    import peft.peft_model
    import transformers.modeling_utils

    import oddsmith.checkpoint.state

    return [
        (oddsmith.checkpoint.state, "save_file"),
        (peft.peft_model, "safe_save_file"),
        (transformers.modeling_utils, "safe_save_file"),
    ]


def _readers() -> list[Any]:
    """Return the modules that call safetensors' ``safe_open``."""
    import safetensors.torch
    import transformers.modeling_utils

    import oddsmith.checkpoint.state

    return [oddsmith.checkpoint.state, safetensors.torch, transformers.modeling_utils]


class _RealFile:
    """safetensors' open file, whose tensors are real."""

    def __init__(self, *arguments: Any, **others: Any):
        self._arguments, self._others = arguments, others | {"device": "cpu"}

    def __enter__(self) -> _RealFile:
        self._opened = _own_safe_open(*self._arguments, **self._others)
        self._file = self._opened.__enter__()
        return self

    def __exit__(self, *error: Any) -> Any:
        return self._opened.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def get_tensor(self, name: str) -> Tensor:
        with unset_fake_temporarily():
            return self._file.get_tensor(name)

    def get_tensors(self) -> dict[str, Tensor]:
        with unset_fake_temporarily():
            return self._file.get_tensors()


def _writing_zeros(save_file: Callable[..., Any], wait: Wait) -> Callable[..., Any]:
    def save(tensors: dict[str, Tensor], *arguments: Any, **others: Any) -> Any:
        for tensor in tensors.values():
            wait(tensor, "save")
        real = {name: _zeros(tensor) if isinstance(tensor, FakeTensor) else tensor for name, tensor in tensors.items()}
        with unset_fake_temporarily():
            return save_file(real, *arguments, **others)

    return save
