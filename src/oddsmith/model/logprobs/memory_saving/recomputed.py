"""Recompute a tensor in the backward pass instead of saving it.

A normalised input, or act(gate) * up, is cheap to compute and as large as any activation; the tensors it is computed
from, its sources, are saved anyway. So the operation that makes such a tensor marks it with its sources, and a layer
that would save the tensor saves the sources instead:

    rms_norm            returns y, marked with (x, weight, 1 / rms)
    q, k and v_proj     find the mark on their input y: each saves (x, weight, 1 / rms), the same three tensors
    backward            the first of the three layers computes y again, the last one drops it

A view, a dropout or another layer in between loses the mark without harm: the tensor itself is saved then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_ATTRIBUTE = "_oddsmith_recomputed"


class Recomputed:
    """A tensor that is computed again when its first reader asks for it, and held until its last reader has."""

    def __init__(self, make: Callable[..., Tensor]):
        """``make(dtype, *sources)`` computes the same bits as the first time, and rounds them to ``dtype``."""
        self._make = make
        self._readers = 0
        self._value: Tensor | None = None

    def expect_reader(self) -> None:
        """Announce, in the forward pass, one more :meth:`read` in the backward pass."""
        self._readers += 1

    def read(self, dtype: torch.dtype, *sources: Tensor) -> Tensor:
        """Return the tensor as ``dtype``, in the backward pass; it must not be written to. Its readers ask for one.

        A second backward pass over the same graph has no announced readers and computes it again each time.
        """
        value = self._value
        if value is None or value.dtype != dtype:
            value = self._make(dtype, *sources)
        self._readers -= 1
        self._value = value if self._readers > 0 else None
        return value


def mark_recomputable(y: Tensor, recomputed: Recomputed, *sources: Tensor) -> None:
    """Note on a tensor how to compute it from tensors that the graph saves anyway."""
    if y.is_inference():  # has no version, and no backward pass
        return
    versions = [tensor._version for tensor in (y, *sources)]
    setattr(y, _ATTRIBUTE, (recomputed, [tensor.detach() for tensor in sources], versions))


def what_to_save(x: Tensor) -> tuple[Recomputed | None, list[Tensor]]:
    """Return what a layer saves to have its input x again in the backward pass: how to compute it, and from what.

    That is ``None`` and x itself where x carries no mark, or x or a source has been written to since. Otherwise a
    reader has been announced.
    """
    recomputed, sources, versions = getattr(x, _ATTRIBUTE, (None, [], []))
    if recomputed is None or versions != [tensor._version for tensor in (x, *sources)]:
        return None, [x.detach()]
    recomputed.expect_reader()
    return recomputed, sources


def save(ctx: Any, x: Tensor, *others: Tensor | None, needs_x: bool) -> None:
    """Save tensors for the backward pass: the others, and x where it is needed, or the tensors to recompute it from."""
    ctx.recomputed, sources = what_to_save(x) if needs_x else (None, [])
    ctx.sources = len(sources)
    ctx.save_for_backward(*sources, *others)


def saved(ctx: Any) -> tuple[Any, ...]:
    """Return what :func:`save` saved: x in ``ctx.dtype`` (or ``None``), and the others."""
    tensors = ctx.saved_tensors
    sources, others = tensors[: ctx.sources], tensors[ctx.sources :]
    if not sources:
        return None, *others
    x = sources[0].to(ctx.dtype) if ctx.recomputed is None else ctx.recomputed.read(ctx.dtype, *sources)
    return x, *others
