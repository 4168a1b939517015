"""RMSNorm that keeps its input and one number a row.

The modules of transformers keep three or four copies of their input, most of them float32. Everything the backward
pass needs follows from the input as it was given and r = 1 / sqrt(mean(x^2) + eps).

Shape letters: N rows (all dimensions but the last), D width.
"""

from __future__ import annotations

import enum
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .recompute import Recomputed, mark_recomputable


class Scale(enum.Enum):
    """How a module multiplies by its weight; x^ is the normalised input in float32.

    In float32 the first two are one; in bf16 they round differently, and the result has another dtype where input and
    weight differ.
    """

    AFTER_CAST = enum.auto()  # w * cast(x^): llama, mistral, qwen, phi3, granite
    BEFORE_CAST = enum.auto()  # cast(w * x^): olmo2, olmo3
    ONE_PLUS = enum.auto()  # cast(x^ * (1 + w)): gemma


def rms_norm(x: Tensor, weight: Tensor, eps: float, scale: Scale) -> Tensor:
    """y = w * x / sqrt(mean(x^2) + eps), the mean over the last dimension and in float32.

    The plain reference is the forward of the module that this stands in for.

    Args:
        x: Input, [..., D], float32, bf16 or float16; kept for the backward pass as it is.
        weight: [D]; may be frozen.
        eps: Added to the mean of squares.
        scale: How the weight is applied, and rounded.

    Returns:
        The normalised input, [..., D], in the dtype that ``scale`` says.

    Source: Zhang and Sennrich, arXiv 1910.07467, Eq. 4.
    """
    y, inverse_N1 = _RMSNorm.apply(x, weight, eps, scale)
    mark_recomputable(y, Recomputed(partial(_scaled, scale)), x, weight, inverse_N1)
    return y


def _scaled(scale: Scale, x: Tensor, weight: Tensor, inverse_N1: Tensor) -> Tensor:
    """y from x and 1 / rms, with the operations of transformers' modules in their order: the same bits."""
    normal = _normal(x, inverse_N1)
    if scale is Scale.AFTER_CAST:
        cast = normal.to(x.dtype)
        return cast.mul_(weight) if weight.dtype == x.dtype else weight * cast
    return normal.mul_(_factor(weight, scale)).to(x.dtype)


def _normal(x: Tensor, inverse_N1: Tensor) -> Tensor:
    """x^ = x / rms, float32, a tensor of its own."""
    return x * inverse_N1 if x.dtype == torch.float32 else x.float().mul_(inverse_N1)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, scale: Scale) -> tuple[Tensor, Tensor]:
        wide = x.float()
        inverse_N1 = torch.rsqrt((wide * wide).mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, inverse_N1)
        ctx.mark_non_differentiable(inverse_N1)
        ctx.scale = scale
        return _scaled(scale, x, weight, inverse_N1), inverse_N1

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """With g = dY * w and x^ = x / rms:  dX = (g - x^ mean(g x^)) / rms,  dW = sum over the rows of dY * x^."""
        x, weight, inverse_N1 = ctx.saved_tensors
        normal = _normal(x, inverse_N1)
        grad_x = grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (grad * normal).flatten(0, -2).sum(0).to(weight.dtype)
        if ctx.needs_input_grad[0]:
            scaled = grad.float() * _factor(weight, ctx.scale)
            along_N1 = torch.linalg.vecdot(scaled, normal).unsqueeze(-1).div_(-x.shape[-1])
            grad_x = scaled.addcmul_(normal, along_N1).mul_(inverse_N1).to(x.dtype)
        return grad_x, grad_weight, None, None


def _factor(weight: Tensor, scale: Scale) -> Tensor:
    """What x^ is multiplied by, float32 [D]."""
    return 1.0 + weight.float() if scale is Scale.ONE_PLUS else weight.float()
