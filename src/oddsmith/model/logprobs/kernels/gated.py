"""Gated product, elementwise: y = act(gate) * up, for four activations.

Shape letters: N rows (all dimensions but the last), F columns.
"""

from __future__ import annotations

import enum

import torch
import torch.nn.functional as F
from torch import Tensor

from . import operator


class Activation(enum.IntEnum):
    """An activation function with a kernel."""

    SILU = enum.auto()
    GELU = enum.auto()  # x Phi(x), Phi the normal distribution
    GELU_TANH = enum.auto()  # its approximation
    QUICK_GELU = enum.auto()  # x sigmoid(1.702 x) = silu(1.702 x) / 1.702

    def of(self, x: Tensor) -> Tensor:
        """Return act(x)."""
        if self == Activation.SILU:
            return F.silu(x)
        if self == Activation.QUICK_GELU:
            return F.silu(1.702 * x) / 1.702
        return F.gelu(x, approximate="none" if self == Activation.GELU else "tanh")

    def gradient(self, grad: Tensor, x: Tensor) -> Tensor:
        """Return grad * act'(x)."""
        if self == Activation.SILU:
            return torch.ops.aten.silu_backward(grad, x)
        if self == Activation.QUICK_GELU:
            return torch.ops.aten.silu_backward(grad, 1.702 * x)
        return torch.ops.aten.gelu_backward(grad, x, approximate="none" if self == Activation.GELU else "tanh")


# ---- Plain references, with the operators' arguments


def reference_gated(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    """Return y."""
    return activation.of(gate) * up


def reference_gated_backward(gate: Tensor, grad: Tensor, up: Tensor, activation: Activation) -> tuple[Tensor, Tensor]:
    """Return dGate = dY * up * act'(gate) and dUp = dY * act(gate)."""
    return activation.gradient(grad * up, gate), grad * activation.of(gate)


# ---- Operators


def gated_dtype(gate: Tensor, up: Tensor) -> torch.dtype:
    """Return the dtype of the product."""
    return torch.promote_types(gate.dtype, up.dtype)


def _empty_gated(gate: Tensor, up: Tensor, activation: int) -> Tensor:
    return gate.new_empty(gate.shape, dtype=gated_dtype(gate, up))


def _empty_gated_backward(gate: Tensor, grad: Tensor, up: Tensor, activation: int) -> tuple[Tensor, Tensor]:
    return gate.new_empty(gate.shape), up.new_empty(up.shape)


gated = operator("gated(Tensor gate, Tensor up, int activation) -> Tensor", reference_gated, _empty_gated)
gated_backward = operator(
    "gated_backward(Tensor gate, Tensor grad, Tensor up, int activation) -> (Tensor, Tensor)",
    reference_gated_backward,
    _empty_gated_backward,
)
