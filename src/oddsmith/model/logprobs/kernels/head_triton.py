"""The head's kernel; what it computes is said in ``head.py``."""

# mypy: allow-incomplete-defs
# of kernels, whose tensors have no types

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_LOWEST: tl.constexpr = tl.constexpr(-3.4028234663852886e38)


@triton.jit
def _logits(z, scale, soft_cap, HAS_CAP: tl.constexpr):
    """Return the logits, and the derivative of the soft cap."""
    logits = z.to(tl.float32) * scale
    slope = logits
    if HAS_CAP:
        # tanh by an exponential that cannot overflow; its error, 6e-8 * cap, is that of a logit near the cap.
        e = tl.exp(-2 * tl.abs(logits / soft_cap))
        slope = 4 * e / ((1 + e) * (1 + e))
        logits = tl.where(logits < 0, -soft_cap, soft_cap) * ((1 - e) / (1 + e))
    return logits, slope


@triton.jit
def _with(logits, largest, total):
    """Return the largest logit of each lane and the sum of exponentials relative to it, with one more logit a lane.

    One exponential a number: of the old sum and the new number, one is relative to the larger logit already. A NaN
    stays in the sum.
    """
    rise = logits - largest
    e = tl.exp(-tl.abs(rise))
    return tl.maximum(largest, logits), tl.where(rise > 0, total * e + 1, total + e)


@triton.jit
def _residual(z, is_target, top, total, scale, soft_cap, HAS_CAP: tl.constexpr):
    logits, slope = _logits(z, scale, soft_cap, HAS_CAP)
    residual = tl.exp(logits - top) / total - tl.where(is_target, 1.0, 0.0)
    return residual * slope if HAS_CAP else residual


@triton.jit
def target_logps_kernel(z_ptr, z_stride, target_ptr, logp_ptr, residual_ptr, residual_stride, scale, soft_cap, V,
                        HAS_CAP: tl.constexpr, RESIDUALS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Compute a row. Whole blocks have no mask, so that rows of any V are read 16 bytes a thread at a time."""
    row = tl.program_id(0).to(tl.int64)
    z_ptr += row * z_stride
    lane = tl.arange(0, BLOCK)
    blocks = V // BLOCK
    last = blocks * BLOCK + lane
    target = tl.load(target_ptr + row)
    z_target = tl.load(z_ptr + target, mask=(target >= 0) & (target < V), other=float("nan"))

    largest = tl.full((BLOCK,), _LOWEST, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for block in range(blocks):
        logits, _ = _logits(tl.load(z_ptr + block * BLOCK + lane), scale, soft_cap, HAS_CAP)
        largest, total = _with(logits, largest, total)
    z_last = tl.load(z_ptr + last, mask=last < V, other=0.0)
    logits, _ = _logits(z_last, scale, soft_cap, HAS_CAP)
    largest, total = _with(tl.where(last < V, logits, float("-inf")), largest, total)
    top = tl.max(largest, 0)
    total = tl.sum(total * tl.exp(largest - top), 0)

    logit, _ = _logits(z_target, scale, soft_cap, HAS_CAP)
    # The difference first: near probability 1 both terms are small.
    tl.store(logp_ptr + row, (logit - top) - tl.log(total))

    if RESIDUALS:
        residual_ptr += row * residual_stride
        dtype = residual_ptr.dtype.element_ty
        z_last = tl.load(z_ptr + last, mask=last < V, other=0.0)  # again, as registers are dear
        residual = _residual(z_last, last == target, top, total, scale, soft_cap, HAS_CAP)
        tl.store(residual_ptr + last, residual.to(dtype), mask=last < V)
        for block in range(blocks):
            column = (blocks - 1 - block) * BLOCK + lane  # from the end, which the cache still has
            z = tl.load(z_ptr + column)
            residual = _residual(z, column == target, top, total, scale, soft_cap, HAS_CAP)
            tl.store(residual_ptr + column, residual.to(dtype))


def target_logps(
    z_CV: Tensor, target_C: Tensor, scale: float, soft_cap: float | None, residual_CV: Tensor | None
) -> Tensor:
    """Run the kernel of ``target_logps_reference``."""
    C, V = z_CV.shape
    z_CV = z_CV if z_CV.stride(1) == 1 else z_CV.contiguous()
    logp_C = torch.empty(C, dtype=torch.float32, device=z_CV.device)
    if C:
        into_CV = z_CV if residual_CV is None else residual_CV
        rows = z_CV, z_CV.stride(0), target_C.contiguous(), logp_C, into_CV, into_CV.stride(0)
        settings = {"HAS_CAP": soft_cap is not None, "RESIDUALS": residual_CV is not None, **tile(V)}
        target_logps_kernel[(C,)](*rows, scale, soft_cap or 1.0, V, **settings)
    return logp_C


def tile(vocabulary: int) -> dict[str, int]:
    """Return the tile of a program: 8 numbers of its row a thread, 16 bytes in bf16, of up to 512 threads.

    Compiled for an H100 that is 32 registers a thread (40 with a soft cap), so that four (three) programs share a
    multiprocessor and 32 KB are on their way there; with 16 numbers a thread it was 59 (92).
    """
    block = min(4096, max(256, triton.next_power_of_2(vocabulary)))
    return {"BLOCK": block, "num_warps": block // 256}
