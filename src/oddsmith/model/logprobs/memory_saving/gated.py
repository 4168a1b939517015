"""The product in a gated MLP, act(gate) * up, which keeps gate and up and nothing that follows from them.

Composed of separate operations, act(gate) is kept as well, and by the layer that reads it the product too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .recompute import Recomputed, mark_recomputable


class Activation(NamedTuple):
    """An elementwise function and how a gradient passes back through it."""

    value: Callable[[Tensor], Tensor]
    gradient: Callable[[Tensor, Tensor], Tensor]  # (dY, input) -> dInput


def _gelu(approximate: str) -> Activation:
    return Activation(
        partial(F.gelu, approximate=approximate), partial(torch.ops.aten.gelu_backward, approximate=approximate)
    )


SILU = Activation(F.silu, torch.ops.aten.silu_backward)
# "Quick": x sigmoid(1.702 x) = silu(1.702 x) / 1.702
QUICK_GELU = Activation(
    lambda x: F.silu(1.702 * x) / 1.702, lambda grad, x: torch.ops.aten.silu_backward(grad, 1.702 * x)
)
ACTIVATIONS = (SILU, _gelu("none"), _gelu("tanh"), QUICK_GELU)


def gated_product(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    """act(gate) * up.

    The plain reference is ``activation.value(gate) * up`` under autograd.

    Args:
        gate: Any shape and floating dtype; kept.
        up: As ``gate``; kept.
        activation: One of ``ACTIVATIONS``.

    Returns:
        The product, in the dtype of ``gate``; it can be made again from gate and up.

    Source: Shazeer, GLU Variants Improve Transformer, arXiv 2002.05202, Eq. 5.
    """
    activated = Recomputed(activation.value)
    y = _GatedProduct.apply(gate, up, activation, activated)

    def make(gate: Tensor, up: Tensor) -> Tensor:
        activated.expect_reader()  # the backward pass of the product comes next and wants it too
        return activated.read(gate) * up

    mark_recomputable(y, Recomputed(make), gate, up)
    return y


class _GatedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: Activation, activated: Recomputed) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activation, ctx.activated = activation, activated
        activated.expect_reader()
        return activation.value(gate) * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """dUp = dY * act(gate),  dGate = dY * up * act'(gate)."""
        gate, up = ctx.saved_tensors
        grad_up = grad * ctx.activated.read(gate)
        return ctx.activation.gradient(grad * up, gate), grad_up, None, None
