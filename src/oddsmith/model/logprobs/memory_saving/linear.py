"""Linear layers with their LoRA branches, several over one input as one operation: q, k and v, or gate and up.

Composed of separate operations, PEFT's layer saves a bf16 copy of its input and the intermediate results of its branch
(which it adds in four passes over the output); under autocast a bf16 copy of every trainable weight. Here:

    linears         saves the input at most once, or what it is recomputed from, and x A^T of all layers
    add_branches    saves the same; the products with the weights are bitsandbytes' (4-bit weights)

The input of several layers is cast once, their LoRA A's are one thin product, which reads x once, and their gradients
of x are added up by the products themselves.

Shape letters: N rows (all dimensions but the last), D inputs, O outputs, R rank, or the sum of several.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backward_pass import exact_backward
from .conditions import Branch
from .recomputed import save, saved


class Weights(NamedTuple):
    """What a linear layer multiplies by, in any floating dtype, each frozen or not."""

    base: Tensor  # W [O, D]
    bias: Tensor | None = None  # b [O]
    branch: Branch | None = None

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """W, b, A and B, ``None`` for one that is not there."""
        return self.base, self.bias, *((None, None) if self.branch is None else self.branch[:2])


def linears(x: Tensor, layers: Sequence[Weights], dtype: torch.dtype) -> list[Tensor]:
    """Compute y = x W^T + b + s (x A^T) B^T for each layer, from x [..., D] to y [..., O].

    Products and y are in ``dtype``; gradients have the dtype of their tensors. The plain reference is the forward of
    the layers that this replaces, under autocast.

    Source: Hu et al., LoRA, arXiv 2106.09685, Eq. 3.
    """
    scalings = [1.0 if layer.branch is None else layer.branch.scaling for layer in layers]
    found = _Linears.apply(x, dtype, scalings, *(tensor for layer in layers for tensor in layer.tensors))
    # Shaped out here: a view that a Function returns may not be written to, as OLMo does (clamp_ of q, k and v).
    return [y_NO.view(*x.shape[:-1], y_NO.shape[-1]) for y_NO in found]


def add_branches(ys: Sequence[Tensor], x: Tensor, branches: Sequence[Branch]) -> list[Tensor]:
    """Add a LoRA branch s (x A^T) B^T to each y [..., O], a product of another library; x [..., D] has y's dtype.

    They are added in place, unless y is a view: the product of a layer with a bias is a view that bitsandbytes'
    Function returns, and autograd forbids writing to that.
    """
    own = [y.clone(memory_format=torch.contiguous_format) if y._is_view() or not y.is_contiguous() else y for y in ys]
    tensors = [tensor for branch in branches for tensor in branch[:2]]
    return list(_Branches.apply(x, [branch.scaling for branch in branches], *own, *tensors))


class _Linears(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dtype: torch.dtype, scalings: list[float], *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        layers = _layers(tensors, scalings)
        x_ND = _rows(x).to(dtype)
        biases = [None if layer.bias is None else layer.bias.to(dtype) for layer in layers]
        inner_NR, products = _inner_products(x_ND, [layer.branch for layer in layers])
        ys = []
        for layer, bias, inner in zip(layers, biases, products, strict=True):
            if layer.branch is None:
                ys.append(F.linear(x_ND, layer.base.to(dtype), bias))
                continue
            B_RO = layer.branch.lora_B.to(dtype).t()
            y_NO = inner @ B_RO if bias is None else torch.addmm(bias, inner, B_RO)
            # The large product adds to the small one's result: it reads that while it computes.
            ys.append(y_NO.addmm_(x_ND, layer.base.to(dtype).t()))
        ctx.set_materialize_grads(False)
        ctx.dtype, ctx.x_dtype, ctx.x_shape, ctx.scalings = dtype, x.dtype, x.shape, scalings
        needed = ctx.needs_input_grad[3:]
        save(ctx, x, inner_NR, *tensors, needs_x=any(needed[0::4]) or any(needed[2::4]))
        return tuple(ys)

    @staticmethod
    @exact_backward
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """With v = dY B, summed over layers:  dX = dY W + s v A,  dW = dY^T x,  db = sum of dY;  dA, dB as below."""
        x, inner_NR, *tensors = saved(ctx)
        x_ND: Any = None if x is None else _rows(x)
        layers = _layers(tensors, ctx.scalings)
        grads_NO = [None if grad is None else grad.to(ctx.dtype) for grad in grads]
        needs_x, needs = ctx.needs_input_grad[0], ctx.needs_input_grad[3:]
        grad_x_ND, of_branches = _branch_gradients(
            grads_NO, x_ND, inner_NR, [layer.branch for layer in layers], (needs_x, needs[2::4], needs[3::4])
        )
        found: list[Tensor | None] = []
        for place, (grad_NO, (base, bias, _)) in enumerate(zip(grads_NO, layers, strict=True)):
            grad_base = grad_bias = None
            if grad_NO is not None:
                if needs_x:
                    grad_x_ND = _added(grad_x_ND, grad_NO, base.to(ctx.dtype))
                if needs[4 * place]:
                    grad_base = (grad_NO.t() @ x_ND).to(base.dtype)
                if bias is not None and needs[4 * place + 1]:
                    grad_bias = grad_NO.sum(0).to(bias.dtype)
            found += grad_base, grad_bias, *of_branches[place]
        grad_x = None if grad_x_ND is None else grad_x_ND.view(ctx.x_shape).to(ctx.x_dtype)
        return grad_x, None, None, *found


class _Branches(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scalings: list[float], *tensors: Tensor) -> tuple[Tensor, ...]:
        ys, tensors = tensors[: len(scalings)], tensors[len(scalings) :]
        branches = _branches(tensors, scalings)
        ctx.mark_dirty(*ys)
        inner_NR, products = _inner_products(_rows(x).to(ys[0].dtype), branches)
        for y, branch, inner in zip(ys, branches, products, strict=True):
            _rows(y).addmm_(inner, branch.lora_B.to(y.dtype).t())
        ctx.set_materialize_grads(False)
        ctx.dtype, ctx.x_shape, ctx.scalings = ys[0].dtype, x.shape, scalings
        save(ctx, x, inner_NR, *tensors, needs_x=any(ctx.needs_input_grad[2 + len(ys) :: 2]))
        return ys

    @staticmethod
    @exact_backward
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, inner_NR, *tensors = saved(ctx)
        needs, needs_branch = ctx.needs_input_grad, ctx.needs_input_grad[2 + len(ctx.scalings) :]
        grad_x_ND, of_branches = _branch_gradients(
            [None if grad is None else _rows(grad) for grad in grads],
            None if x is None else _rows(x),
            inner_NR,
            _branches(tensors, ctx.scalings),
            (needs[0], needs_branch[0::2], needs_branch[1::2]),
        )
        grad_x = None if grad_x_ND is None else grad_x_ND.view(ctx.x_shape)
        grads_y = [grad if needed else None for grad, needed in zip(grads, needs[2:], strict=False)]
        return grad_x, None, *grads_y, *(gradient for gradients in of_branches for gradient in gradients)


def _inner_products(x_ND: Tensor, branches: Sequence[Branch | None]) -> tuple[Tensor | None, list[Any]]:
    """Return s x A^T of all branches as one tensor, [N, R], and that of each."""
    some = [branch for branch in branches if branch is not None]
    if not some:
        return None, [None] * len(branches)
    inner_NR = x_ND @ _stacked_A(some, x_ND.dtype).t()
    return inner_NR, _split(inner_NR, branches)


def _branch_gradients(
    grads_NO: Sequence[Tensor | None],
    x_ND: Any,
    inner_NR: Any,
    branches: Sequence[Branch | None],
    needs: tuple[bool, Sequence[bool], Sequence[bool]],
) -> tuple[Tensor | None, list[tuple[Tensor | None, Tensor | None]]]:
    """Return the branches' part of dX, and dA and dB of each; ``needs`` says which: of x, of each A, of each B.

    With v = dY B:  dX = s v A,  dA = s v^T x,  dB = dY^T (s x A^T).
    """
    found: list[tuple[Tensor | None, Tensor | None]] = [(None, None)] * len(branches)
    some = [
        (place, branch, grad)
        for place, (branch, grad) in enumerate(zip(branches, grads_NO, strict=True))
        if branch is not None and grad is not None
    ]
    if not some:
        return None, found
    needs_x, needs_A, needs_B = needs
    dtype = inner_NR.dtype
    products = [grad_NO @ branch.lora_B.to(dtype) for _, branch, grad_NO in some]
    v_NR = products[0] if len(products) == 1 else torch.cat(products, 1)
    used = [branch for _, branch, _ in some]
    grad_x_ND = v_NR @ _stacked_A(used, dtype) if needs_x else None
    grads_A = _split(v_NR.t() @ x_ND, used, 0) if any(needs_A[place] for place, _, _ in some) else [None] * len(some)
    inners = _split(inner_NR, branches)
    for (place, branch, grad_NO), grad_A in zip(some, grads_A, strict=True):
        grad_B = (grad_NO.t() @ inners[place]).to(branch.lora_B.dtype) if needs_B[place] else None
        found[place] = (
            grad_A.to(branch.lora_A.dtype).mul(branch.scaling) if grad_A is not None and needs_A[place] else None,
            grad_B,
        )
    return grad_x_ND, found


def _layers(tensors: Sequence[Any], scalings: Sequence[float]) -> list[Weights]:
    layers = []
    for place, scaling in enumerate(scalings):
        base, bias, lora_A, lora_B = tensors[4 * place : 4 * place + 4]
        layers.append(Weights(base, bias, None if lora_A is None else Branch(lora_A, lora_B, scaling)))
    return layers


def _branches(tensors: Sequence[Tensor], scalings: Sequence[float]) -> list[Branch]:
    return [Branch(A, B, scaling) for A, B, scaling in zip(tensors[0::2], tensors[1::2], scalings, strict=True)]


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _split(stacked: Tensor, branches: Sequence[Branch | None], dim: int = 1) -> list[Tensor]:
    """Return each branch's part of a tensor that holds them one after the other; nothing of it for ``None``."""
    return list(stacked.split([0 if branch is None else len(branch.lora_A) for branch in branches], dim))


def _added(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    """Return total + left @ right, added in place."""
    return left @ right if total is None else total.addmm_(left, right)


def _stacked_A(branches: Sequence[Branch], dtype: torch.dtype) -> Tensor:
    """Return all s A as one matrix, [R, D]: the smallest tensors that s can be multiplied into."""
    As = [branch.lora_A for branch in branches]
    scalings = {branch.scaling for branch in branches}
    if len(scalings) > 1:
        As, scalings = [branch.lora_A * branch.scaling for branch in branches], {1.0}
    stacked = As[0] if len(As) == 1 else torch.cat(As)
    return (stacked if scalings == {1.0} else stacked * scalings.pop()).to(dtype)
