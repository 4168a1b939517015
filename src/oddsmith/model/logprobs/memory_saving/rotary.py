"""Find the functions by which attention layers rotate queries and keys, and use one kernel in their place.

The code of transformers' models calls a function of its module, ``apply_rotary_pos_emb(q, k, cos, sin)``; remote code
does likewise. One that gives the reference's values on random input, to the bit, is replaced in its module's globals
while ``MemorySavingLayers`` are applied. Where no kernel runs it is called as it is.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..kernels import kernels_take
from ..kernels.rotary import reference_rotary
from .elementwise import rotary_embedding

NAME = "apply_rotary_pos_emb"
Rotation = Callable[..., tuple[Tensor, Tensor]]


class Function(NamedTuple):
    """A function of a module, and what to put in its place."""

    namespace: dict[str, Any]
    own: Rotation
    ours: Rotation


def rotary_functions(model: nn.Module) -> Iterator[Function]:
    """Return the functions that the classes of a model call, and that rotate as the reference does."""
    seen: set[int] = set()
    for kind in {type(module) for module in model.modules()}:
        forward: Any = inspect.unwrap(kind.forward)
        namespace = getattr(forward, "__globals__", {})
        own = namespace.get(NAME)
        if id(namespace) in seen or own is None or NAME not in forward.__code__.co_names:
            continue
        seen.add(id(namespace))
        if _rotates(own, channels=16, rotated=16):
            in_part = _rotates(own, channels=16, rotated=8)
            yield Function(namespace, own, partial(forward_rotary, own, in_part))


def forward_rotary(
    own: Rotation, in_part: bool, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """Rotate all of the channels, or the first of them if ``in_part``."""
    usual = (
        not (args or kwargs or torch.compiler.is_compiling())
        and kernels_take(query)
        and (query.ndim, key.ndim, cos.ndim) == (4, 4, 3)
        and (query.shape[::2], query.shape[3]) == (key.shape[::2], key.shape[3])
        and (cos.shape, cos.dtype) == (sin.shape, sin.dtype)
        and cos.shape[0] in (1, query.shape[0])
        and cos.shape[1] == query.shape[2]  # the kernel reads a row for each token
        and key.dtype == query.dtype
        and cos.dtype in (query.dtype, torch.float32)
        and (cos.shape[-1] == query.shape[-1] or in_part)
        and not (cos.requires_grad or sin.requires_grad)
    )
    return rotary_embedding(query, key, cos, sin) if usual else own(query, key, cos, sin, *args, **kwargs)


def _rotates(own: Rotation, channels: int, rotated: int) -> bool:
    """Return whether a function computes what the reference does, in each combination of dtypes that occurs."""
    generator = torch.Generator("cpu").manual_seed(0)
    shapes = (2, 4, 5, channels), (2, 2, 5, channels), (2, 5, rotated), (2, 5, rotated)
    numbers = [torch.randn(shape, generator=generator, device="cpu") for shape in shapes]
    for dtype, cos_dtype in (
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32),
    ):
        inputs = [x.to(dtype if place < 2 else cos_dtype) for place, x in enumerate(numbers)]
        try:
            with torch.no_grad(), torch.autocast("cpu", enabled=False):
                theirs: Any = own(*inputs)
        except (RuntimeError, TypeError, AttributeError, LookupError, ValueError):
            return False
        ours = reference_rotary(*inputs)
        if not isinstance(theirs, tuple) or len(theirs) != 2:
            return False
        if any(a.dtype != b.dtype or not torch.equal(a, b) for a, b in zip(theirs, ours, strict=True)):
            return False
    return True
