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
        x_ND, layers = _rows(x).to(dtype), _layers(tensors, scalings)
        stack = _Stack.of([layer.branch for layer in layers], dtype)
        inner_NR = None if stack.A_RD is None else x_ND @ stack.A_RD.t()
        ys = []
        for layer, B_OR, inner in zip(layers, stack.Bs, stack.split(inner_NR), strict=True):
            bias = None if layer.bias is None else layer.bias.to(dtype)
            if B_OR is None:
                ys.append(F.linear(x_ND, layer.base.to(dtype), bias))
                continue
            y_NO = inner @ B_OR.t() if bias is None else torch.addmm(bias, inner, B_OR.t())
            # The large product adds to the small one's result: it reads that while it computes.
            ys.append(y_NO.addmm_(x_ND, layer.base.to(dtype).t()))
        ctx.set_materialize_grads(False)
        ctx.dtype, ctx.x_dtype, ctx.x_shape = dtype, x.dtype, x.shape
        ctx.kinds, ctx.bias_dtypes = stack.kinds, [None if layer.bias is None else layer.bias.dtype for layer in layers]
        needed, bases = ctx.needs_input_grad[3:], [layer.base for layer in layers]
        needs_x = any(needed[0::4]) or any(needed[2::4])
        save(ctx, x, inner_NR, stack.A_RD, *stack.Bs, *bases, needs_x=needs_x)
        return tuple(ys)

    @staticmethod
    @exact_backward
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """With v = dY B, summed over layers:  dX = dY W + s v A,  dW = dY^T x,  db = sum of dY;  dA, dB as below."""
        x, inner_NR, A_RD, *others = saved(ctx)
        x_ND: Any = None if x is None else _rows(x)
        count = len(ctx.kinds)
        stack, bases = _Stack(A_RD, others[:count], ctx.kinds), others[count:]
        grads_NO = [None if grad is None else grad.to(ctx.dtype) for grad in grads]
        needs_x, needs = ctx.needs_input_grad[0], ctx.needs_input_grad[3:]
        grad_x_ND, of_branches = _branch_gradients(grads_NO, x_ND, inner_NR, stack, (needs_x, needs[2::4], needs[3::4]))
        found: list[Tensor | None] = []
        for place, (grad_NO, base) in enumerate(zip(grads_NO, bases, strict=True)):
            grad_base = grad_bias = None
            if grad_NO is not None:
                if needs_x:
                    base_OD = base.to(ctx.dtype)
                    grad_x_ND = grad_NO @ base_OD if grad_x_ND is None else grad_x_ND.addmm_(grad_NO, base_OD)
                if needs[4 * place]:
                    grad_base = (grad_NO.t() @ x_ND).to(base.dtype)
                if needs[4 * place + 1]:
                    grad_bias = grad_NO.sum(0).to(ctx.bias_dtypes[place])
            found += grad_base, grad_bias, *of_branches[place]
        grad_x = None if grad_x_ND is None else grad_x_ND.view(ctx.x_shape).to(ctx.x_dtype)
        return grad_x, None, None, *found


class _Branches(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scalings: list[float], *tensors: Tensor) -> tuple[Tensor, ...]:
        ys, tensors = tensors[: len(scalings)], tensors[len(scalings) :]
        dtype = ys[0].dtype
        triples = zip(tensors[0::2], tensors[1::2], scalings, strict=True)
        stack: Any = _Stack.of([Branch(A, B, scaling) for A, B, scaling in triples], dtype)
        inner_NR = _rows(x).to(dtype) @ stack.A_RD.t()
        ctx.mark_dirty(*ys)
        for y, B_OR, inner in zip(ys, stack.Bs, stack.split(inner_NR), strict=True):
            _rows(y).addmm_(inner, B_OR.t())
        ctx.set_materialize_grads(False)
        ctx.dtype, ctx.x_shape, ctx.kinds = dtype, x.shape, stack.kinds
        save(ctx, x, inner_NR, stack.A_RD, *stack.Bs, needs_x=any(ctx.needs_input_grad[2 + len(ys) :: 2]))
        return ys

    @staticmethod
    @exact_backward
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, inner_NR, A_RD, *Bs = saved(ctx)
        needs, needs_branch = ctx.needs_input_grad, ctx.needs_input_grad[2 + len(grads) :]
        grad_x_ND, of_branches = _branch_gradients(
            [None if grad is None else _rows(grad) for grad in grads],
            None if x is None else _rows(x),
            inner_NR,
            _Stack(A_RD, Bs, ctx.kinds),
            (needs[0], needs_branch[0::2], needs_branch[1::2]),
        )
        grad_x = None if grad_x_ND is None else grad_x_ND.view(ctx.x_shape)
        grads_y = [grad if needed else None for grad, needed in zip(grads, needs[2:], strict=False)]
        return grad_x, None, *grads_y, *(gradient for gradients in of_branches for gradient in gradients)


class _Kind(NamedTuple):
    """What is known of a branch beside its numbers; rank 0: a layer that has none."""

    rank: int = 0
    scaling: float = 1.0
    A_dtype: torch.dtype | None = None
    B_dtype: torch.dtype | None = None


class _Stack(NamedTuple):
    """The branches of layers over one input, in the dtype of the products; they are cast once a step."""

    A_RD: Tensor | None  # s A of all of them, one below the other: the smallest tensors that s can be multiplied into
    Bs: list[Tensor | None]  # [O, R of the layer]
    kinds: list[_Kind]

    @classmethod
    def of(cls, branches: Sequence[Branch | None], dtype: torch.dtype) -> _Stack:
        kinds = [
            _Kind() if b is None else _Kind(len(b.lora_A), b.scaling, b.lora_A.dtype, b.lora_B.dtype) for b in branches
        ]
        some = [branch for branch in branches if branch is not None]
        scalings = {branch.scaling for branch in some}
        As = [branch.lora_A if len(scalings) == 1 else branch.lora_A * branch.scaling for branch in some]
        A_RD = None if not As else As[0] if len(As) == 1 else torch.cat(As)
        if A_RD is not None:
            A_RD = (A_RD * scalings.pop() if len(scalings) == 1 else A_RD).to(dtype)
        return cls(A_RD, [None if branch is None else branch.lora_B.to(dtype) for branch in branches], kinds)

    def split(self, stacked: Tensor | None, dim: int = 1) -> list[Any]:
        """Return each layer's part of a tensor that holds all branches one after the other."""
        return [None] * len(self.kinds) if stacked is None else list(stacked.split([k.rank for k in self.kinds], dim))


def _branch_gradients(
    grads_NO: Sequence[Tensor | None],
    x_ND: Any,
    inner_NR: Any,
    stack: _Stack,
    needs: tuple[bool, Sequence[bool], Sequence[bool]],
) -> tuple[Tensor | None, list[tuple[Tensor | None, Tensor | None]]]:
    """Return the branches' part of dX, and dA and dB of each; ``needs`` says which: of x, of each A, of each B.

    With v = dY B:  dX = s v A,  dA = s v^T x,  dB = dY^T (s x A^T).
    """
    if inner_NR is None:
        return None, [(None, None)] * len(grads_NO)
    needs_x, needs_A, needs_B = needs
    # A result that nothing uses has a gradient of 0.
    products = [
        inner_NR.new_zeros(len(inner_NR), kind.rank) if grad_NO is None or B_OR is None else grad_NO @ B_OR
        for grad_NO, B_OR, kind in zip(grads_NO, stack.Bs, stack.kinds, strict=True)
    ]
    v_NR = products[0] if len(products) == 1 else torch.cat(products, 1)
    grad_x_ND = v_NR @ stack.A_RD if needs_x and stack.A_RD is not None else None
    grads_A = stack.split(v_NR.t() @ x_ND if any(needs_A) else None, 0)
    found: list[tuple[Tensor | None, Tensor | None]] = []
    for place, (grad_NO, inner, kind) in enumerate(zip(grads_NO, stack.split(inner_NR), stack.kinds, strict=True)):
        grad_A = grad_B = None
        if grad_NO is not None and needs_A[place]:
            grad_A = grads_A[place].to(kind.A_dtype, copy=True).mul_(kind.scaling)
        if grad_NO is not None and needs_B[place]:
            grad_B = (grad_NO.t() @ inner).to(kind.B_dtype)
        found.append((grad_A, grad_B))
    return grad_x_ND, found


def _layers(tensors: Sequence[Any], scalings: Sequence[float]) -> list[Weights]:
    layers = []
    for place, scaling in enumerate(scalings):
        base, bias, lora_A, lora_B = tensors[4 * place : 4 * place + 4]
        layers.append(Weights(base, bias, None if lora_A is None else Branch(lora_A, lora_B, scaling)))
    return layers


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])
