"""Choose the kernel of tree attention on a GPU, after a trial of each on that GPU.

A kernel may be compiled for another card, need more shared memory than this one has, or mask otherwise than it is
documented to: PyTorch hands the same call on to other libraries from version to version. So none is used before its
values and gradients have been compared with the whole mask, once for each kind of heads, on a small random forest that
branches. This takes a few milliseconds, beside compiling what will be used anyway. The order:

    flash.py               flash_attn where it is installed, then PyTorch's build: half precision, heads up to 256
    flex.py                FlexAttention, with tiles that fit the device; then with the smallest
    dense.py               where nothing else runs; memory grows with the square of the row

Shape suffixes as in ``attention/__init__.py``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ....batching.forest import ForestLayout, pack
from ....system.compilers import compiler_fault
from ....system.memory import is_of_the_machine
from .dense import dense_forest_attention
from .flash import flash_forest_attention, flash_kernels, flash_takes
from .flex import flex_forest_attention

logger = logging.getLogger(__name__)

Attend = Callable[..., Tensor]
# Norm of the difference, of values or a gradient, over that of the exact ones. Roundings of bfloat16 give 0.01;
# another mask gives 0.3 and more.
ALIKE = 0.05
_WINDOW, _CHUNK = 50, 70  # of the trial; its sequences have 100 tokens and more


class Kind(NamedTuple):
    """What decides whether a kernel takes a layer's attention."""

    device: torch.device
    dtype: torch.dtype
    heads: int
    groups: int
    channels: int
    value_channels: int
    windowed: bool
    chunked: bool
    softcap: float | None
    has_sinks: bool

    def __str__(self) -> str:
        channels = {self.channels: None, self.value_channels: None}
        parts = [f"heads of {' and '.join(map(str, channels))} in {str(self.dtype).removeprefix('torch.')}"]
        flags = {"a window": self.windowed, "chunks": self.chunked, "a soft cap": self.softcap, "sinks": self.has_sinks}
        if extras := [name for name, there in flags.items() if there]:
            parts.append(f"with {' and '.join(extras)}")
        return " ".join(parts)


def cuda_forest_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    forest: ForestLayout,
    *,
    scaling: float,
    window: int | None = None,
    chunk: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Compute ``dense_forest_attention`` by the first kernel that computes it rightly on this device."""
    kind = Kind(
        query.device,
        query.dtype,
        query.shape[1],
        key.shape[1],
        query.shape[-1],
        value.shape[-1],
        window is not None,
        chunk is not None,
        softcap,
        sinks is not None,
    )
    attend = chosen_attention(kind)
    return attend(query, key, value, forest, scaling=scaling, window=window, chunk=chunk, softcap=softcap, sinks=sinks)


@cache
def chosen_attention(kind: Kind) -> Attend:
    """Return the first way that passes its trial; say which did not, and why."""
    for name, attend in _candidates(kind):
        fault = fault_of(attend, kind)
        if fault is None:
            return attend
        logger.warning("Attention of %s: %s is not used here: %s.", kind, name, fault)
    logger.warning(
        "Attention of %s is computed with the whole mask, as no kernel runs here: its memory grows with the square of a"
        " micro-batch's tokens. If memory runs out, lower max_tokens_per_microbatch.",
        kind,
    )
    return dense_forest_attention


def _candidates(kind: Kind) -> Iterator[tuple[str, Attend]]:
    if not kind.chunked and not kind.has_sinks:
        for name, kernel in flash_kernels(kind.device).items():
            capped = kind.softcap is not None
            if flash_takes(kernel, kind.dtype, kind.channels, kind.value_channels, capped=capped):
                yield name, partial(flash_forest_attention, kernel)
    yield "FlexAttention", flex_forest_attention
    yield "FlexAttention with small tiles", partial(flex_forest_attention, smallest=True)


# ---- The trial


def fault_of(attend: Attend, kind: Kind) -> str | None:
    """Try a way on random tensors of a kind, forward and backward; return what is wrong with it, or ``None``.

    A lack of memory and errors of the device itself are raised: they say nothing about the kernel.
    """
    # A thread of its own has none of the state around a layer's call: autocast, no_grad, hooks of checkpointing.
    with ThreadPoolExecutor(1) as thread:
        try:
            difference = thread.submit(_difference, attend, kind).result()
        except Exception as error:  # a compiler may raise anything
            if is_of_the_machine(error) and "CUDNN_STATUS_NOT_SUPPORTED" not in str(error):  # cuDNN has no such kernel
                raise
            first_line = (str(error).strip() or "no reason given").splitlines()[0]
            return compiler_fault(error) or f"{type(error).__name__}: {first_line[:300].rstrip('.')}"
    if not difference <= ALIKE:  # also where it is NaN
        return f"its values or gradients differ from those of the whole mask by {difference:.2g} of their norm"
    return None


def _difference(attend: Attend, kind: Kind) -> float:
    """Return the largest difference of values and gradients, as a part of the norm of the exact ones."""
    device = kind.device
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        layout = _trial_forest().to(device)
        generator = torch.Generator(device).manual_seed(0)
        options = {
            "scaling": kind.channels**-0.5,
            "window": _WINDOW if kind.windowed else None,
            "chunk": _CHUNK if kind.chunked else None,
            "softcap": kind.softcap,
        }

        def drawn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device).to(kind.dtype)

        rows = len(layout.depth_T)
        tensors = [
            drawn(1, n, rows, size)
            for n, size in (
                (kind.heads, kind.channels),
                (kind.groups, kind.channels),
                (kind.groups, kind.value_channels),
            )
        ]
        if kind.has_sinks:
            tensors.append(drawn(kind.heads))
        d_out = drawn(1, rows, kind.heads, kind.value_channels)

        def results(way: Attend, dtype: torch.dtype) -> list[Tensor]:
            inputs = [tensor.to(dtype, copy=True).requires_grad_() for tensor in tensors]
            sinks = inputs[3] if kind.has_sinks else None
            out = way(*inputs[:3], layout, sinks=sinks, **options)
            return [out, *torch.autograd.grad(out, inputs, d_out.to(dtype))]

        exact = results(dense_forest_attention, torch.promote_types(kind.dtype, torch.float32))
        found = results(attend, kind.dtype)
        differences = [
            torch.linalg.vector_norm(one.to(other.dtype) - other) / torch.linalg.vector_norm(other)
            for one, other in zip(found, exact, strict=True)
        ]
        return torch.stack(differences).max().item()


@cache
def _trial_forest() -> ForestLayout:
    """Return a forest of 535 rows: two prompts, answers that begin alike, one that ends where another begins."""
    generator = np.random.default_rng(0)
    sequences = []
    for prompt_tokens in (100, 33):
        prompt, start = generator.integers(0, 50, prompt_tokens), generator.integers(0, 50, 20)
        for shared, tokens in ((start, 60), (start, 90), (start[:0], 30), (start[:0], 1)):
            sequences.append(np.concatenate([prompt, shared, generator.integers(0, 50, tokens)]))
        sequences.append(prompt)
    return pack(sequences)[2]
