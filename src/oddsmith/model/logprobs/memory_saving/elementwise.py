"""RMSNorm, gated product and rotary embedding, each with a written-out backward pass.

On a GPU each pass is one kernel (``kernels/``), elsewhere torch's operations. A composition of separate operations, as
in transformers' modules, saves three or four copies of a norm's input, most of them float32; act(gate) and the product
beside gate and up. Here:

    rms_norm        saves its input and one number a row; its output can be recomputed
    gated_product   saves gate and up; likewise
    rotary          saves cos and sin, as transformers' does
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..backward_pass import exact_backward
from ..kernels import kernels_take
from ..kernels.gated import Activation, gated, gated_backward
from ..kernels.norm import Scale, norm, norm_again, norm_backward
from ..kernels.rotary import rotary, rotary_backward
from .recomputed import Recomputed, mark_recomputable

# ---- RMSNorm


def rms_norm(x: Tensor, weight: Tensor, eps: float, scale: Scale) -> Tensor:
    """Compute y = w * x / sqrt(mean(x^2) + eps), the mean over the last dimension and in float32.

    The plain reference is the forward of the module that this replaces.

    Args:
        x: Input, [..., D], float32, bf16 or float16.
        weight: [D]; may be frozen.
        eps: Added to the mean of squares.
        scale: How the weight is applied, and rounded.

    Returns:
        The normalised input, [..., D], in the dtype that ``scale`` says; it can be recomputed.

    Source: Zhang and Sennrich, arXiv 1910.07467, Eq. 4.
    """
    y, inverse_N1 = _RMSNorm.apply(x, weight, eps, scale)
    mark_recomputable(y, Recomputed(partial(_norm_again, scale)), x, weight, inverse_N1)
    return y


def _norm_again(scale: Scale, dtype: torch.dtype, x: Tensor, weight: Tensor, inverse_N1: Tensor) -> Tensor:
    return norm_again(x, weight, inverse_N1, scale, dtype)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, scale: Scale) -> tuple[Tensor, Tensor]:
        y, inverse_N1 = norm(x, weight, eps, scale)
        ctx.save_for_backward(x, weight, inverse_N1)
        ctx.mark_non_differentiable(inverse_N1)
        ctx.scale = scale
        return y, inverse_N1

    @staticmethod
    @exact_backward
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight, inverse_N1 = ctx.saved_tensors
        needs_x, needs_weight = ctx.needs_input_grad[:2]
        grad_x, grad_weight_PD = norm_backward(x, grad, weight, inverse_N1, ctx.scale, needs_weight)
        grad_weight = grad_weight_PD.sum(0).to(weight.dtype) if needs_weight else None
        return grad_x if needs_x else None, grad_weight, None, None


# ---- Gated product


def gated_product(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    """Compute act(gate) * up, for any shape and floating dtype; the result can be recomputed.

    The plain reference is ``activation.of(gate) * up`` under autograd.

    Source: Shazeer, GLU Variants Improve Transformer, arXiv 2002.05202, Eq. 5.
    """
    if kernels_take(gate):
        y = _GatedProduct.apply(gate, up, activation, None)
        mark_recomputable(y, Recomputed(lambda dtype, gate, up: gated(gate, up, activation).to(dtype)), gate, up)
        return y
    # Without a kernel the activation takes a pass over memory, and is shared by the recomputed product and the
    # backward pass.
    activated = Recomputed(lambda dtype, gate: activation.of(gate))
    y = _GatedProduct.apply(gate, up, activation, activated)

    def make(dtype: torch.dtype, gate: Tensor, up: Tensor) -> Tensor:
        activated.expect_reader()  # the backward pass of the product comes next and reads it too
        return (activated.read(gate.dtype, gate) * up).to(dtype)

    mark_recomputable(y, Recomputed(make), gate, up)
    return y


class _GatedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: Activation, activated: Recomputed | None) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activation, ctx.activated = activation, activated
        if activated is not None:
            activated.expect_reader()
        return gated(gate, up, activation)

    @staticmethod
    @exact_backward
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        gate, up = ctx.saved_tensors
        if ctx.activated is None:
            return *gated_backward(gate, grad, up, ctx.activation), None, None
        grad_up = grad * ctx.activated.read(gate.dtype, gate)
        return ctx.activation.gradient(grad * up, gate), grad_up, None, None


# ---- Rotary position embedding


def rotary_embedding(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate queries, [B, H, T, C], and keys, [B, G, T, C], by ``cos`` and ``sin``, [B or 1, T, R].

    The plain reference is ``reference_rotary`` under autograd; ``cos`` and ``sin`` get no gradient.

    Source: Su et al., RoFormer, arXiv 2104.09864, Eq. 34, with pairs of channels half of them apart.
    """
    return _Rotary.apply(query, key, cos, sin)


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        ctx.dtype = query.dtype
        return rotary(query, key, cos, sin)

    @staticmethod
    @exact_backward
    def backward(ctx: Any, grad_query: Tensor, grad_key: Tensor) -> tuple[Tensor, Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return *rotary_backward(grad_query, grad_key, cos, sin, ctx.dtype), None, None
