"""RMSNorm's kernels; what they compute is said in ``norm.py``."""

# mypy: allow-incomplete-defs
# of kernels, whose tensors have no types

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .norm import Scale, norm_dtype, partial_sums, rows_of_tile

_AFTER_CAST: tl.constexpr = tl.constexpr(int(Scale.AFTER_CAST))
_ONE_PLUS: tl.constexpr = tl.constexpr(int(Scale.ONE_PLUS))


@triton.jit
def _scaled(normal, weight, x_ptr, SCALE: tl.constexpr):
    """Multiply x^ by the weight, in float32, rounded where ``Scale`` says but for the end."""
    if SCALE == _ONE_PLUS:
        return normal * (weight + 1.0)
    if SCALE == _AFTER_CAST:
        normal = normal.to(x_ptr.dtype.element_ty).to(tl.float32)
    return normal * weight


@triton.jit
def _norm_kernel(x_ptr, weight_ptr, y_ptr, inverse_ptr, rows, eps, AGAIN: tl.constexpr, SCALE: tl.constexpr,
                D: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (column < D)
    x = tl.load(x_ptr + row * D + column, mask=inside, other=0.0).to(tl.float32)
    if AGAIN:
        inverse = tl.load(inverse_ptr + row, mask=row < rows, other=0.0)
    else:
        inverse = tl.rsqrt(tl.sum(x * x, 1)[:, None] / D + eps)
        tl.store(inverse_ptr + row, inverse, mask=row < rows)
    weight = tl.load(weight_ptr + column, mask=column < D, other=0.0).to(tl.float32)
    y = _scaled(x * inverse, weight, x_ptr, SCALE)
    if SCALE != _AFTER_CAST:
        y = y.to(x_ptr.dtype.element_ty)
    tl.store(y_ptr + row * D + column, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _norm_backward_kernel(grad_ptr, x_ptr, weight_ptr, inverse_ptr, grad_x_ptr, grad_weight_ptr, rows,
                         SCALE: tl.constexpr, NEEDS_WEIGHT: tl.constexpr, D: tl.constexpr,
                         ROWS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    column = tl.arange(0, BLOCK)[None, :]
    weight = tl.load(weight_ptr + column, mask=column < D, other=0.0).to(tl.float32)
    if SCALE == _ONE_PLUS:
        weight += 1.0
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = (tile * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        inside = (row < rows) & (column < D)
        grad = tl.load(grad_ptr + row * D + column, mask=inside, other=0.0).to(tl.float32)
        inverse = tl.load(inverse_ptr + row, mask=row < rows, other=0.0)
        normal = tl.load(x_ptr + row * D + column, mask=inside, other=0.0).to(tl.float32) * inverse
        scaled = grad * weight
        along = tl.sum(scaled * normal, 1)[:, None] / D
        grad_x = (scaled - normal * along) * inverse
        tl.store(grad_x_ptr + row * D + column, grad_x.to(grad_x_ptr.dtype.element_ty), mask=inside)
        if NEEDS_WEIGHT:
            total += grad * normal
    if NEEDS_WEIGHT:
        place = tl.program_id(0) * D + tl.arange(0, BLOCK)
        tl.store(grad_weight_ptr + place, tl.sum(total, 0), mask=tl.arange(0, BLOCK) < D)


def tile(columns: int) -> dict[str, int]:
    """Return the tile of a program: whole rows; up to 16 numbers a thread, as far as there are threads."""
    rows, block = rows_of_tile(columns), triton.next_power_of_2(columns)
    return {"ROWS": rows, "BLOCK": block, "num_warps": min(16, max(4, rows * block // 512))}


def norm(x: Tensor, weight: Tensor, eps: float, scale: int) -> tuple[Tensor, Tensor]:
    """Run the kernel of ``reference_norm``."""
    y = torch.empty(x.shape, dtype=norm_dtype(x, weight, Scale(scale)), device=x.device)
    inverse_N1 = torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device)
    _launch(x, weight, y, inverse_N1, eps, scale, again=False)
    return y, inverse_N1


def norm_again(x: Tensor, weight: Tensor, inverse_N1: Tensor, scale: int, dtype: torch.dtype) -> Tensor:
    """Run the kernel of ``reference_norm_again``."""
    y = torch.empty(x.shape, dtype=dtype, device=x.device)
    _launch(x, weight, y, inverse_N1, 0.0, scale, again=True)
    return y


def _launch(x: Tensor, weight: Tensor, y: Tensor, inverse_N1: Tensor, eps: float, scale: int, again: bool) -> None:
    rows, columns = inverse_N1.numel(), x.shape[-1]
    if rows:
        settings = tile(columns)
        grid = (triton.cdiv(rows, settings["ROWS"]),)
        arguments = x.contiguous(), weight.contiguous(), y, inverse_N1, rows, eps
        _norm_kernel[grid](*arguments, AGAIN=again, SCALE=scale, D=columns, **settings)


def norm_backward(
    x: Tensor, grad: Tensor, weight: Tensor, inverse_N1: Tensor, scale: int, needs_weight: bool
) -> tuple[Tensor, Tensor]:
    """Run the kernel of ``reference_norm_backward``."""
    rows, columns = inverse_N1.numel(), x.shape[-1]
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    partial = partial_sums(rows, columns)
    grad_weight_PD = torch.empty(partial * needs_weight, columns, dtype=torch.float32, device=x.device)
    if rows:
        settings = tile(columns)
        grid = (partial if needs_weight else triton.cdiv(rows, settings["ROWS"]),)
        arguments = grad.contiguous(), x.contiguous(), weight.contiguous(), inverse_N1, grad_x, grad_weight_PD, rows
        _norm_backward_kernel[grid](*arguments, SCALE=scale, NEEDS_WEIGHT=needs_weight, D=columns, **settings)
    return grad_x, grad_weight_PD
