"""RMSNorm of rows: y = w * x / sqrt(mean(x^2) + eps).

Three operators: one launch each, and a second one for the gradient of the weight, whose partial sums are added without
atomics: the same bits each time. Shape letters: N rows (all dimensions but the last), D columns, P partial sums.
"""

from __future__ import annotations

import enum

import torch
from torch import Tensor

from . import operator


class Scale(enum.IntEnum):
    """How a module multiplies by its weight; x^ is the normalised input in float32.

    In float32 the first two are the same; in bf16 they round differently, and the result has another dtype where input
    and weight differ.
    """

    AFTER_CAST = enum.auto()  # w * cast(x^): llama, mistral, qwen, phi3, granite
    BEFORE_CAST = enum.auto()  # cast(w * x^): olmo2, olmo3
    ONE_PLUS = enum.auto()  # cast(x^ * (1 + w)): gemma


def norm_dtype(x: Tensor, weight: Tensor, scale: Scale) -> torch.dtype:
    """Return the dtype of the normalised and scaled input."""
    return torch.promote_types(x.dtype, weight.dtype) if scale == Scale.AFTER_CAST else x.dtype


# ---- Plain references, with the operators' arguments


def reference_norm(x: Tensor, weight: Tensor, eps: float, scale: Scale) -> tuple[Tensor, Tensor]:
    """Return y, [..., D] in ``norm_dtype``, and 1 / rms, float32 [..., 1]."""
    wide = x.float()
    inverse_N1 = torch.rsqrt((wide * wide).mean(-1, keepdim=True) + eps)
    return reference_norm_again(x, weight, inverse_N1, scale, norm_dtype(x, weight, scale)), inverse_N1


def reference_norm_again(x: Tensor, weight: Tensor, inverse_N1: Tensor, scale: Scale, dtype: torch.dtype) -> Tensor:
    """Return y from 1 / rms, as ``dtype``: the operations of transformers' modules, in their order."""
    normal = _normal(x, inverse_N1)
    if scale == Scale.AFTER_CAST:
        cast = normal.to(x.dtype)
        return (cast.mul_(weight) if weight.dtype == x.dtype else weight * cast).to(dtype)
    return normal.mul_(_factor(weight, scale)).to(x.dtype).to(dtype)


def reference_norm_backward(
    x: Tensor, grad: Tensor, weight: Tensor, inverse_N1: Tensor, scale: Scale, needs_weight: bool
) -> tuple[Tensor, Tensor]:
    """Return dX and partial sums of dW, float32 [P, D], none where it is not needed.

    With g = dY * w and x^ = x / rms:  dX = (g - x^ mean(g x^)) / rms,  dW = sum over the rows of dY * x^.
    """
    normal = _normal(x, inverse_N1)
    if needs_weight:
        grad_weight_PD = (grad * normal).flatten(0, -2).sum(0, keepdim=True)
    else:
        grad_weight_PD = normal.new_empty(0, x.shape[-1])
    scaled = grad.float() * _factor(weight, scale)
    along_N1 = (scaled * normal).sum(-1, keepdim=True).div_(-x.shape[-1])
    return scaled.addcmul_(normal, along_N1).mul_(inverse_N1).to(x.dtype), grad_weight_PD


def _normal(x: Tensor, inverse_N1: Tensor) -> Tensor:
    """Return x^ = x / rms, float32, as a new tensor."""
    return x * inverse_N1 if x.dtype == torch.float32 else x.float().mul_(inverse_N1)


def _factor(weight: Tensor, scale: Scale) -> Tensor:
    """Return what x^ is multiplied by, float32 [D]."""
    return 1.0 + weight.float() if scale == Scale.ONE_PLUS else weight.float()


# ---- Operators

MOST_PARTIAL_SUMS = 256  # of dW: programs that each add up rows
TILE = 2048  # numbers that a program holds at once, at least


def rows_of_tile(columns: int) -> int:
    """Return how many rows a program computes at once; they are filled up to a power of two columns."""
    return max(1, TILE >> (columns - 1).bit_length())


def partial_sums(rows: int, columns: int) -> int:
    """Return P."""
    return min(MOST_PARTIAL_SUMS, -(-rows // rows_of_tile(columns)))


def _empty_norm(x: Tensor, weight: Tensor, eps: float, scale: int) -> tuple[Tensor, Tensor]:
    y = x.new_empty(x.shape, dtype=norm_dtype(x, weight, Scale(scale)))
    return y, x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)


def _empty_norm_again(x: Tensor, weight: Tensor, inverse_N1: Tensor, scale: int, dtype: torch.dtype) -> Tensor:
    return x.new_empty(x.shape, dtype=dtype)


def _empty_norm_backward(
    x: Tensor, grad: Tensor, weight: Tensor, inverse_N1: Tensor, scale: int, needs_weight: bool
) -> tuple[Tensor, Tensor]:
    partial = partial_sums(inverse_N1.numel(), x.shape[-1]) if needs_weight else 0
    return x.new_empty(x.shape), x.new_empty(partial, x.shape[-1], dtype=torch.float32)


norm = operator("norm(Tensor x, Tensor weight, float eps, int scale) -> (Tensor, Tensor)", reference_norm, _empty_norm)
norm_again = operator(
    "norm_again(Tensor x, Tensor weight, Tensor inverse, int scale, ScalarType dtype) -> Tensor",
    reference_norm_again,
    _empty_norm_again,
)
norm_backward = operator(
    "norm_backward(Tensor x, Tensor grad, Tensor weight, Tensor inverse, int scale, bool needs_weight)"
    " -> (Tensor, Tensor)",
    reference_norm_backward,
    _empty_norm_backward,
)
