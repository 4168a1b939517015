"""RMSNorm, gated product and linear layer with LoRA, each with a written-out backward pass that saves less.

Composed of separate operations, a layer of transformers and PEFT saves for its backward pass: three or four copies of a
norm's input, most of them float32; act(gate) and the product beside gate and up; a bf16 copy of a LoRA layer's input
and the intermediate results of its branch (which it adds in four passes over the output); under autocast a bf16 copy of
every trainable weight. Here:

    rms_norm        saves its input and one number a row
    gated_product   saves gate and up
    linear          saves its input at most once, or what it is recomputed from, and x A^T
    add_branch      saves the same; the base's product is bitsandbytes' (4-bit weights)

Shape letters: N rows (all dimensions but the last), D inputs or width, O outputs, R rank.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .conditions import AT_MOST_SINGLE, branch_of, is_plain, plain_weight, product_dtype

# ---- Recomputing instead of saving
#
# A normalised input, or act(gate) * up, is cheap to compute and as large as any activation; the tensors it is computed
# from, its sources, are saved anyway. So the operation that makes such a tensor marks it with its sources, and a layer
# that would save the tensor saves the sources instead:
#
#     rms_norm            returns y, marked with (x, weight, 1 / rms)
#     q, k and v_proj     find the mark on their input y: each saves (x, weight, 1 / rms), the same three tensors
#     backward            the first of the three layers computes y again, the last one drops it
#
# A view, a dropout or another layer in between loses the mark without harm: the tensor itself is saved then.

_ATTRIBUTE = "_oddsmith_recomputed"


class Recomputed:
    """A tensor that is computed again when its first reader asks for it, and held until its last reader has."""

    def __init__(self, make: Callable[..., Tensor]):
        """``make`` computes it from its sources: the same bits as the first time."""
        self._make = make
        self._readers = 0
        self._value: Tensor | None = None

    def expect_reader(self) -> None:
        """Announce, in the forward pass, one more :meth:`read` in the backward pass."""
        self._readers += 1

    def read(self, *sources: Tensor) -> Tensor:
        """Return the tensor, in the backward pass; it must not be written to.

        A second backward pass over the same graph has no announced readers and computes it again each time.
        """
        value = self._make(*sources) if self._value is None else self._value
        self._readers -= 1
        self._value = value if self._readers > 0 else None
        return value


def mark_recomputable(y: Tensor, recomputed: Recomputed, *sources: Tensor) -> None:
    """Note on a tensor how to compute it from tensors that the graph saves anyway."""
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


# ---- RMSNorm


class Scale(enum.Enum):
    """How a module multiplies by its weight; x^ is the normalised input in float32.

    In float32 the first two are the same; in bf16 they round differently, and the result has another dtype where input
    and weight differ.
    """

    AFTER_CAST = enum.auto()  # w * cast(x^): llama, mistral, qwen, phi3, granite
    BEFORE_CAST = enum.auto()  # cast(w * x^): olmo2, olmo3
    ONE_PLUS = enum.auto()  # cast(x^ * (1 + w)): gemma


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
    mark_recomputable(y, Recomputed(partial(_scaled_norm, scale)), x, weight, inverse_N1)
    return y


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, scale: Scale) -> tuple[Tensor, Tensor]:
        wide = x.float()
        inverse_N1 = torch.rsqrt((wide * wide).mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, inverse_N1)
        ctx.mark_non_differentiable(inverse_N1)
        ctx.scale = scale
        return _scaled_norm(scale, x, weight, inverse_N1), inverse_N1

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


def _scaled_norm(scale: Scale, x: Tensor, weight: Tensor, inverse_N1: Tensor) -> Tensor:
    """Return y from x and 1 / rms, with the operations of transformers' modules in their order: the same bits."""
    normal = _normal(x, inverse_N1)
    if scale is Scale.AFTER_CAST:
        cast = normal.to(x.dtype)
        return cast.mul_(weight) if weight.dtype == x.dtype else weight * cast
    return normal.mul_(_factor(weight, scale)).to(x.dtype)


def _normal(x: Tensor, inverse_N1: Tensor) -> Tensor:
    """Return x^ = x / rms, float32, as a new tensor."""
    return x * inverse_N1 if x.dtype == torch.float32 else x.float().mul_(inverse_N1)


def _factor(weight: Tensor, scale: Scale) -> Tensor:
    """Return what x^ is multiplied by, float32 [D]."""
    return 1.0 + weight.float() if scale is Scale.ONE_PLUS else weight.float()


# ---- Gated product


class Activation(NamedTuple):
    """An elementwise function and its backward pass."""

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
    """Compute act(gate) * up, for any shape and floating dtype; the result can be recomputed.

    The plain reference is ``activation.value(gate) * up`` under autograd.

    Source: Shazeer, GLU Variants Improve Transformer, arXiv 2002.05202, Eq. 5.
    """
    activated = Recomputed(activation.value)
    y = _GatedProduct.apply(gate, up, activation, activated)

    def make(gate: Tensor, up: Tensor) -> Tensor:
        activated.expect_reader()  # the backward pass of the product comes next and reads it too
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
        """Return dUp = dY * act(gate) and dGate = dY * up * act'(gate)."""
        gate, up = ctx.saved_tensors
        grad_up = grad * ctx.activated.read(gate)
        return ctx.activation.gradient(grad * up, gate), grad_up, None, None


# ---- Linear layer with its LoRA branch


class Weights(NamedTuple):
    """What a linear layer multiplies by, in any floating dtype, each frozen or not; A and B come together."""

    base: Tensor  # W [O, D]
    bias: Tensor | None = None  # b [O]
    lora_A: Tensor | None = None  # [R, D]
    lora_B: Tensor | None = None  # [O, R]
    scaling: float = 1.0  # s


def linear(x: Tensor, weights: Weights, dtype: torch.dtype) -> Tensor:
    """Compute y = x W^T + b + s (x A^T) B^T, from x [..., D] to y [..., O].

    Products and y are in ``dtype``; gradients have the dtype of their tensors. The plain reference is the forward of
    the layer that this replaces, under autocast.

    Source: Hu et al., LoRA, arXiv 2106.09685, Eq. 3.
    """
    y_NO = _Linear.apply(x, *weights, dtype)
    # Shaped out here: a view that a Function returns may not be written to, as OLMo does (clamp_ of q, k and v).
    return y_NO.view(*x.shape[:-1], y_NO.shape[-1])


def add_branch(y: Tensor, x: Tensor, lora_A: Tensor, lora_B: Tensor, scaling: float) -> Tensor:
    """Add the LoRA branch s (x A^T) B^T to y [..., O], the product of another library; x [..., D] has y's dtype.

    It is added in place, unless y is a view: the product of a layer with a bias is a view that bitsandbytes' Function
    returns, and autograd forbids writing to that.
    """
    if y._is_view() or not y.is_contiguous():
        y = y.clone(memory_format=torch.contiguous_format)
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
            # Accumulated by the matrix product itself: no further pass over [N, O].
            y_NO.addmm_(inner_NR, _scaled_B(lora_B, scaling, dtype).t())
        ctx.dtype, ctx.x_dtype, ctx.x_shape, ctx.scaling = dtype, x.dtype, x.shape, scaling
        _save(ctx, x, inner_NR, base, bias, lora_A, lora_B, needs_x=ctx.needs_input_grad[1] or ctx.needs_input_grad[3])
        return y_NO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, ...]:
        """With v = s dY B:  dX = dY W + v A,  dW = dY^T x,  db = sum of dY,  dA = v^T x,  dB = s dY^T (x A^T)."""
        x_ND, inner_NR, base, bias, lora_A, lora_B = _saved(ctx)
        grad_NO = grad_NO.to(ctx.dtype)
        need_x, need_base, need_bias, need_A, need_B = ctx.needs_input_grad[:5]
        grad_x = grad_NO @ base.to(ctx.dtype) if need_x else None
        grad_base = (grad_NO.t() @ x_ND).to(base.dtype) if need_base else None
        grad_bias = grad_NO.sum(0).to(bias.dtype) if need_bias else None
        grad_A = grad_B = None
        if lora_A is not None:
            grad_inner_NR = grad_NO @ _scaled_B(lora_B, ctx.scaling, ctx.dtype)
            if grad_x is not None:
                grad_x.addmm_(grad_inner_NR, lora_A.to(ctx.dtype))
            if need_A:
                grad_A = (grad_inner_NR.t() @ x_ND).to(lora_A.dtype)
            if need_B:
                grad_B = (grad_NO.t() @ inner_NR).to(lora_B.dtype).mul_(ctx.scaling)
        if grad_x is not None:
            grad_x = grad_x.view(ctx.x_shape).to(ctx.x_dtype)
        return grad_x, grad_base, grad_bias, grad_A, grad_B, None, None


class _Branch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, lora_A: Tensor, lora_B: Tensor, scaling: float) -> Tensor:
        ctx.mark_dirty(y)
        inner_NR = _rows(x, y.dtype) @ lora_A.to(y.dtype).t()
        y.view(-1, y.shape[-1]).addmm_(inner_NR, _scaled_B(lora_B, scaling, y.dtype).t())
        ctx.dtype, ctx.scaling = y.dtype, scaling
        _save(ctx, x, inner_NR, lora_A, lora_B, needs_x=ctx.needs_input_grad[2])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, inner_NR, lora_A, lora_B = _saved(ctx)
        need_y, need_x, need_A, need_B = ctx.needs_input_grad[:4]
        grad_NO = grad.reshape(-1, grad.shape[-1])
        grad_inner_NR = grad_NO @ _scaled_B(lora_B, ctx.scaling, ctx.dtype)
        grad_x = (grad_inner_NR @ lora_A.to(ctx.dtype)).view(*grad.shape[:-1], -1) if need_x else None
        grad_A = (grad_inner_NR.t() @ x_ND).to(lora_A.dtype) if need_A else None
        grad_B = (grad_NO.t() @ inner_NR).to(lora_B.dtype).mul_(ctx.scaling) if need_B else None
        return grad if need_y else None, grad_x, grad_A, grad_B, None


def _rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.reshape(-1, x.shape[-1]).to(dtype)


def _scaled_B(lora_B: Tensor, scaling: float, dtype: torch.dtype) -> Tensor:
    """Return s B, the smallest tensor that s can be multiplied into."""
    return (lora_B * scaling).to(dtype)


def _save(ctx: Any, x: Tensor, *others: Tensor | None, needs_x: bool) -> None:
    """Save tensors for the backward pass: the others, and x where it is needed, or the tensors to recompute it from."""
    ctx.recomputed, sources = what_to_save(x) if needs_x else (None, [])
    ctx.sources = len(sources)
    ctx.save_for_backward(*sources, *others)


def _saved(ctx: Any) -> tuple[Any, ...]:
    """Return what :func:`_save` saved: x as rows in the dtype of the products (or ``None``), and the others."""
    saved = ctx.saved_tensors
    sources, others = saved[: ctx.sources], saved[ctx.sources :]
    if not sources:
        return None, *others
    x = sources[0] if ctx.recomputed is None else ctx.recomputed.read(*sources)
    return _rows(x, ctx.dtype), *others


# ---- The forwards of modules, which call the module's own forward where their conditions do not hold

Forward = Callable[..., Tensor]


def forward_norm(module: Any, own: Forward, eps: float, scale: Scale, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Run an RMSNorm module."""
    usual = not args and not kwargs and x.dtype in AT_MOST_SINGLE and is_plain(module.weight)
    if not usual or torch.compiler.is_compiling():
        return own(x, *args, **kwargs)
    return rms_norm(x, module.weight, eps, scale)


def forward_linear(layer: Any, own: Forward, x: Tensor) -> Tensor:
    """Run a linear layer that is trained, or whose weight autocast casts."""
    weight, bias = layer.weight, layer.bias
    dtype = product_dtype(x, weight)
    nothing_to_save = not weight.requires_grad and weight.dtype == dtype
    if dtype is None or nothing_to_save or not is_plain(weight) or torch.compiler.is_compiling():
        return own(x)
    return linear(x, Weights(weight, bias), dtype)


def forward_lora(layer: Any, own: Forward, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Run a LoRA layer over a plain linear layer."""
    base = layer._modules["base_layer"]
    branch, weight = None if args or kwargs else branch_of(layer), plain_weight(base)
    if branch is None or weight is None:
        return own(x, *args, **kwargs)
    _, A, B, scaling = branch
    dtype = product_dtype(x, weight, A, B)
    if dtype is None:
        return own(x)
    return linear(x, Weights(weight, base._parameters["bias"], A, B, scaling), dtype)


def forward_lora_4bit(layer: Any, own: Forward, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Run a LoRA layer over a 4-bit one."""
    branch = None if args or kwargs else branch_of(layer)
    if branch is None:
        return own(x, *args, **kwargs)
    _, A, B, scaling = branch
    if x.dtype != product_dtype(x, A, B):
        return own(x)
    return add_branch(layer.base_layer(x), x, A, B, scaling)


def forward_mlp(
    activation: Activation, fused: bool, module: Any, own: Forward, x: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    """Run a gated MLP."""
    if args or kwargs or torch.compiler.is_compiling():
        return own(x, *args, **kwargs)
    gate, up = module.gate_up_proj(x).chunk(2, dim=-1) if fused else (module.gate_proj(x), module.up_proj(x))
    return module.down_proj(gated_product(gate, up, activation))
