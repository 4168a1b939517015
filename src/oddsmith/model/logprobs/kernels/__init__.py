"""Triton kernels for NVIDIA and AMD GPUs, each beside a plain reference in torch.

norm.py       RMSNorm: forward, recomputed output, backward
gated.py      act(gate) * up: forward (also recomputed), backward
rotary.py     rotary position embedding of queries and keys: forward, backward
head.py       log-probabilities of targets, and the residuals of their gradient

Each module here declares operators ``oddsmith::NAME`` and holds their references; the kernels themselves are in
``NAME_triton.py``, which is imported at their first call: Triton comes with PyTorch for CUDA on Linux, not with others.
Where it is missing, or cannot compile (no C compiler, as in many containers), the references run, and a line says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ....system.compilers import compiler_fault

logger = logging.getLogger(__name__)
_library = torch.library.Library("oddsmith", "FRAGMENT")


def operator(schema: str, reference: Callable[..., Any], empty: Callable[..., Any]) -> Callable[..., Any]:
    """Declare an operator for CUDA tensors, whose kernel is the function of its name in ``NAME_triton.py``.

    Fake tensors, and whatever records operators, see it as one. It has no gradient of its own: it is called by the
    forward and backward functions of an ``autograd.Function``.

    Args:
        schema: Name, arguments (first a tensor) and results in PyTorch's notation: "double(Tensor x) -> Tensor".
        reference: The same in plain torch, for all other tensors; its module is NAME.
        empty: Has the operator's arguments, and returns tensors with shapes, strides and dtypes of its results.

    Returns:
        A function that calls the operator where the kernel takes its first argument and can be compiled, and the
        reference elsewhere.
    """
    name = schema.partition("(")[0]
    module = f"{reference.__module__}_triton"

    def kernel(first: Tensor, *others: Any, **keywords: Any) -> Any:
        with torch.cuda.device(first.device):  # Triton launches on the current one
            return getattr(import_module(module), name)(first, *others, **keywords)

    _library.define(schema)
    _library.impl(name, kernel, "CUDA")
    torch.library.register_fake(f"oddsmith::{name}", empty, lib=_library)
    called = getattr(torch.ops.oddsmith, name).default

    def kernel_or_reference(first: Tensor, *others: Any) -> Any:
        if name in _faults or not kernels_take(first):
            return reference(first, *others)
        try:
            return called(first, *others)
        except Exception as error:  # noqa: BLE001  of Triton's own kinds
            _note_fault(name, error)
        return reference(first, *others)

    return kernel_or_reference


_DTYPES = {torch.float32, torch.bfloat16, torch.float16}


def kernels_take(tensor: Tensor) -> bool:
    """Return whether a kernel runs on a tensor: on a GPU, with Triton, in at most single precision."""
    return tensor.device.type == "cuda" and tensor.dtype in _DTYPES and has_triton()


@cache
def has_triton() -> bool:
    """Return whether Triton is installed, and say so where it is not. It is asked for on GPUs alone."""
    if find_spec("triton") is None:
        _note_fault("all", ModuleNotFoundError("No module named 'triton'"))
        return False
    return True


_faults: dict[str, str] = {}  # why kernels could not be compiled, by operator


def _note_fault(name: str, error: Exception) -> None:
    """Note that an operator has no kernel here, and say why, once for all of them; raise errors of other kinds."""
    fault = compiler_fault(error)
    if fault is None:
        raise error
    if fault not in _faults.values():
        logger.warning("Norms, gated products, rotary embeddings or the head run without a kernel: %s.", fault)
    _faults[name] = fault
