"""The gated product's kernels; what they compute is said in ``gated.py``."""

# mypy: allow-incomplete-defs
# of kernels, whose tensors have no types

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .gated import Activation, gated_dtype

_SILU: tl.constexpr = tl.constexpr(int(Activation.SILU))
_GELU: tl.constexpr = tl.constexpr(int(Activation.GELU))
_QUICK_GELU: tl.constexpr = tl.constexpr(int(Activation.QUICK_GELU))
BLOCK = 1024  # columns of a program, 8 a thread


@triton.jit
def _gate_and_slope(x, ACTIVATION: tl.constexpr):
    """Return a and d with act(x) = x * a and act'(x) = a + x * d, in float32."""
    if ACTIVATION == _GELU:
        a = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
        d = 0.3989422804014327 * tl.exp(-0.5 * x * x)
    elif ACTIVATION == _SILU:
        a = tl.sigmoid(x)
        d = a * (1.0 - a)
    elif ACTIVATION == _QUICK_GELU:
        a = tl.sigmoid(1.702 * x)
        d = 1.702 * a * (1.0 - a)
    else:  # (1 + tanh(z)) / 2 = sigmoid(2 z)
        a = tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
        d = 1.5957691216057308 * (1.0 + 0.134145 * x * x) * a * (1.0 - a)
    return a, d


@triton.jit
def _gated_kernel(gate_ptr, up_ptr, y_ptr, gate_stride, up_stride, columns,
                 ACTIVATION: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    gate = tl.load(gate_ptr + row * gate_stride + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * up_stride + column, mask=inside, other=0.0).to(tl.float32)
    a, _ = _gate_and_slope(gate, ACTIVATION)
    activated = (gate * a).to(gate_ptr.dtype.element_ty).to(tl.float32)  # rounded as by a module of its own
    tl.store(y_ptr + row * columns + column, (activated * up).to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _gated_backward_kernel(grad_ptr, gate_ptr, up_ptr, grad_gate_ptr, grad_up_ptr, gate_stride, up_stride, columns,
                          ACTIVATION: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    place = row * columns + column
    grad = tl.load(grad_ptr + place, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + row * gate_stride + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * up_stride + column, mask=inside, other=0.0).to(tl.float32)
    a, d = _gate_and_slope(gate, ACTIVATION)
    activated = (gate * a).to(gate_ptr.dtype.element_ty).to(tl.float32)
    grad_gate = grad * up * (a + gate * d)
    tl.store(grad_gate_ptr + place, grad_gate.to(grad_gate_ptr.dtype.element_ty), mask=inside)
    tl.store(grad_up_ptr + place, (grad * activated).to(grad_up_ptr.dtype.element_ty), mask=inside)


def gated(gate: Tensor, up: Tensor, activation: int) -> Tensor:
    """Run the kernel of ``reference_gated``."""
    y = torch.empty(gate.shape, dtype=gated_dtype(gate, up), device=gate.device)
    if y.numel():
        gate_NF, up_NF = _rows(gate), _rows(up)
        arguments = gate_NF, up_NF, y, gate_NF.stride(0), up_NF.stride(0), gate.shape[-1]
        _gated_kernel[_grid(gate_NF)](*arguments, ACTIVATION=activation, BLOCK=BLOCK)
    return y


def gated_backward(gate: Tensor, grad: Tensor, up: Tensor, activation: int) -> tuple[Tensor, Tensor]:
    """Run the kernel of ``reference_gated_backward``."""
    grad_gate, grad_up = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (gate, up))
    if grad.numel():
        gate_NF, up_NF = _rows(gate), _rows(up)
        arguments = grad.contiguous(), gate_NF, up_NF, grad_gate, grad_up, gate_NF.stride(0), up_NF.stride(0)
        _gated_backward_kernel[_grid(gate_NF)](*arguments, gate.shape[-1], ACTIVATION=activation, BLOCK=BLOCK)
    return grad_gate, grad_up


def _rows(x: Tensor) -> Tensor:
    """Return x as [N, F], without a copy of gate and up that are halves of one tensor."""
    x_NF = x.flatten(0, -2) if x.ndim > 1 else x[None]
    return x_NF if x_NF.stride(-1) == 1 else x_NF.contiguous()


def _grid(x_NF: Tensor) -> tuple[int, int]:
    return len(x_NF), triton.cdiv(x_NF.shape[1], BLOCK)
