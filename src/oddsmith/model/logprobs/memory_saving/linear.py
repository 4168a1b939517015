"""A linear layer with its LoRA branch as one operation, which keeps its input at most once.

Composed of separate operations, PEFT's layer keeps a bf16 copy of its input beside what the others keep, and the
intermediate results of the branch, and passes four times over the output to add it; a trainable layer under autocast
keeps a bf16 copy of its weight as well.

Shape letters: N rows (all dimensions but the last), D inputs, O outputs, R rank.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .recompute import what_to_save


class Weights(NamedTuple):
    """What a linear layer multiplies by; the adapter's A and B are both there or both ``None``."""

    base: Tensor  # [O, D]
    bias: Tensor | None = None  # [O]
    lora_A: Tensor | None = None  # [R, D]
    lora_B: Tensor | None = None  # [O, R]
    scaling: float = 1.0


def linear(x: Tensor, weights: Weights, dtype: torch.dtype) -> Tensor:
    """y = x W^T + b + s (x A^T) B^T.

    The plain reference is the forward of the layer that this stands in for, under autocast.

    Args:
        x: Input, [..., D]; kept for the gradients of W and A, or what it is made of.
        weights: W [O, D], b [O], A [R, D], B [O, R], in any floating dtype, each frozen or not.
        dtype: What is multiplied in. Gradients have the dtype of what they belong to.

    Returns:
        y, [..., O], in ``dtype``.

    Source: Hu et al., LoRA, arXiv 2106.09685, Eq. 3.
    """
    return _Linear.apply(x, *weights, dtype)


def add_branch(y: Tensor, x: Tensor, lora_A: Tensor, lora_B: Tensor, scaling: float) -> Tensor:
    """y + s (x A^T) B^T, written into y: the branch alone, beside a product that is not ours (4-bit weights).

    Args:
        y: The base's product, [..., O], contiguous; overwritten.
        x: Input, [..., D], in the dtype of y; kept, or what it is made of.
        lora_A: A, [R, D].
        lora_B: B, [O, R].
        scaling: s.

    Returns:
        y.
    """
    return _Branch.apply(y, x, lora_A, lora_B, scaling)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        base: Tensor,
        bias: Tensor | None,
        lora_A: Tensor | None,
        lora_B: Tensor | None,
        scaling: float,
        dtype: torch.dtype,
    ) -> Tensor:
        x_ND = _rows(x, dtype)
        y_NO = F.linear(x_ND, base.to(dtype), None if bias is None else bias.to(dtype))
        inner_NR = None
        if lora_A is not None and lora_B is not None:
            inner_NR = x_ND @ lora_A.to(dtype).t()
            # Accumulated by the matrix product itself: no pass over [N, O] of its own.
            y_NO.addmm_(inner_NR, _scaled(lora_B, scaling, dtype).t())
        ctx.dtype, ctx.x_dtype, ctx.scaling = dtype, x.dtype, scaling
        _keep(ctx, x, inner_NR, base, bias, lora_A, lora_B, needs_x=ctx.needs_input_grad[1] or ctx.needs_input_grad[3])
        return y_NO.view(*x.shape[:-1], y_NO.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """With v = s dY B:  dX = dY W + v A,  dW = dY^T x,  db = sum of dY,  dA = v^T x,  dB = s dY^T (x A^T)."""
        x_ND, inner_NR, base, bias, lora_A, lora_B = _kept(ctx)
        grad_NO = grad.reshape(-1, grad.shape[-1]).to(ctx.dtype)
        need_x, need_base, need_bias, need_A, need_B = ctx.needs_input_grad[:5]
        grad_x = grad_NO @ base.to(ctx.dtype) if need_x else None
        grad_base = (grad_NO.t() @ x_ND).to(base.dtype) if need_base else None
        grad_bias = grad_NO.sum(0).to(bias.dtype) if need_bias else None
        grad_A = grad_B = None
        if lora_A is not None:
            grad_inner_NR = grad_NO @ _scaled(lora_B, ctx.scaling, ctx.dtype)
            if grad_x is not None:
                grad_x.addmm_(grad_inner_NR, lora_A.to(ctx.dtype))
            if need_A:
                grad_A = (grad_inner_NR.t() @ x_ND).to(lora_A.dtype)
            if need_B:
                grad_B = (grad_NO.t() @ inner_NR).to(lora_B.dtype).mul_(ctx.scaling)
        if grad_x is not None:
            grad_x = grad_x.view(*grad.shape[:-1], grad_x.shape[-1]).to(ctx.x_dtype)
        return grad_x, grad_base, grad_bias, grad_A, grad_B, None, None


class _Branch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, lora_A: Tensor, lora_B: Tensor, scaling: float) -> Tensor:
        ctx.mark_dirty(y)
        inner_NR = _rows(x, y.dtype) @ lora_A.to(y.dtype).t()
        y.view(-1, y.shape[-1]).addmm_(inner_NR, _scaled(lora_B, scaling, y.dtype).t())
        ctx.dtype, ctx.scaling = y.dtype, scaling
        _keep(ctx, x, inner_NR, lora_A, lora_B, needs_x=ctx.needs_input_grad[2])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, inner_NR, lora_A, lora_B = _kept(ctx)
        need_y, need_x, need_A, need_B = ctx.needs_input_grad[:4]
        grad_NO = grad.reshape(-1, grad.shape[-1])
        grad_inner_NR = grad_NO @ _scaled(lora_B, ctx.scaling, ctx.dtype)
        grad_x = (grad_inner_NR @ lora_A.to(ctx.dtype)).view(*grad.shape[:-1], -1) if need_x else None
        grad_A = (grad_inner_NR.t() @ x_ND).to(lora_A.dtype) if need_A else None
        grad_B = (grad_NO.t() @ inner_NR).to(lora_B.dtype).mul_(ctx.scaling) if need_B else None
        return grad if need_y else None, grad_x, grad_A, grad_B, None


def _rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.reshape(-1, x.shape[-1]).to(dtype)


def _scaled(lora_B: Tensor, scaling: float, dtype: torch.dtype) -> Tensor:
    """s B: the smallest thing that s can be multiplied into."""
    return (lora_B * scaling).to(dtype)


def _keep(ctx: Any, x: Tensor, *others: Tensor | None, needs_x: bool) -> None:
    """Save tensors for the backward pass, the input (where it is needed) by its recipe (where it has one)."""
    ctx.recomputed, ingredients = what_to_save(x) if needs_x else (None, [])
    ctx.ingredients = len(ingredients)
    ctx.save_for_backward(*ingredients, *others)


def _kept(ctx: Any) -> tuple[Any, ...]:
    """What :func:`_keep` saved: the input as rows in the dtype of the products (or ``None``), and the others."""
    saved = ctx.saved_tensors
    ingredients, others = saved[: ctx.ingredients], saved[ctx.ingredients :]
    if not ingredients:
        return None, *others
    x = ingredients[0] if ctx.recomputed is None else ctx.recomputed.read(*ingredients)
    return _rows(x, ctx.dtype), *others
