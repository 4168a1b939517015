"""The rotary embedding's kernel; what it computes is said in ``rotary.py``."""

# mypy: allow-incomplete-defs
# of kernels, whose tensors have no types

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .rotary import empty_heads


@triton.jit
def _rotate(x_ptr, y_ptr, cos_ptr, sin_ptr, batch, token, x_batch, x_head, x_token, tokens,
            BACKWARD: tl.constexpr, HEADS: tl.constexpr, C: tl.constexpr, R: tl.constexpr,
            ROWS: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr):  # fmt: skip
    """Rotate all heads of a token; strides of the input are given, the result is [B, T, H, C] in memory."""
    head = tl.arange(0, ROWS)[:, None]
    channel = tl.arange(0, HALF)[None, :]
    inside = (head < HEADS) & (channel < R // 2)
    x_place = x_ptr + batch * x_batch + token * x_token + head.to(tl.int64) * x_head
    y_place = y_ptr + ((batch * tokens + token) * HEADS + head) * C
    dtype: tl.constexpr = y_ptr.dtype.element_ty
    x1 = tl.load(x_place + channel, mask=inside, other=0.0).to(tl.float32)
    x2 = tl.load(x_place + R // 2 + channel, mask=inside, other=0.0).to(tl.float32)
    cos1 = tl.load(cos_ptr + channel, mask=channel < R // 2, other=0.0).to(tl.float32)
    cos2 = tl.load(cos_ptr + R // 2 + channel, mask=channel < R // 2, other=0.0).to(tl.float32)
    sin1 = tl.load(sin_ptr + channel, mask=channel < R // 2, other=0.0).to(tl.float32)
    sin2 = tl.load(sin_ptr + R // 2 + channel, mask=channel < R // 2, other=0.0).to(tl.float32)
    if BACKWARD:
        y1 = x1 * cos1 + x2 * sin2
        y2 = x2 * cos2 - x1 * sin1
    else:  # the roundings of separate operations
        y1 = (x1 * cos1).to(dtype).to(tl.float32) - (x2 * sin1).to(dtype).to(tl.float32)
        y2 = (x2 * cos2).to(dtype).to(tl.float32) + (x1 * sin2).to(dtype).to(tl.float32)
    tl.store(y_place + channel, y1.to(dtype), mask=inside)
    tl.store(y_place + R // 2 + channel, y2.to(dtype), mask=inside)
    if C > R:
        channel = R + tl.arange(0, REST)[None, :]
        inside = (head < HEADS) & (channel < C)
        tl.store(y_place + channel, tl.load(x_place + channel, mask=inside, other=0.0).to(dtype), mask=inside)


@triton.jit
def _rotary_kernel(query_ptr, key_ptr, cos_ptr, sin_ptr, query_out_ptr, key_out_ptr, tokens,
                  query_batch, query_head, query_token, key_batch, key_head, key_token,
                  cos_batch, cos_token, sin_batch, sin_token,
                  BACKWARD: tl.constexpr, H: tl.constexpr, G: tl.constexpr, C: tl.constexpr, R: tl.constexpr,
                  H_ROWS: tl.constexpr, G_ROWS: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr):  # fmt: skip
    batch = (tl.program_id(0) // tokens).to(tl.int64)
    token = (tl.program_id(0) % tokens).to(tl.int64)
    cos_ptr += batch * cos_batch + token * cos_token
    sin_ptr += batch * sin_batch + token * sin_token
    _rotate(query_ptr, query_out_ptr, cos_ptr, sin_ptr, batch, token, query_batch, query_head, query_token, tokens,
            BACKWARD, H, C, R, H_ROWS, HALF, REST)  # fmt: skip
    _rotate(key_ptr, key_out_ptr, cos_ptr, sin_ptr, batch, token, key_batch, key_head, key_token, tokens,
            BACKWARD, G, C, R, G_ROWS, HALF, REST)  # fmt: skip


def rotary(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Run the kernel of ``reference_rotary``."""
    return _launch(query, key, cos, sin, torch.promote_types(query.dtype, cos.dtype), backward=False)


def rotary_backward(
    grad_query: Tensor, grad_key: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Run the kernel of ``reference_rotary_backward``."""
    return _launch(grad_query, grad_key, cos, sin, dtype, backward=True)


def _launch(
    query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype, backward: bool
) -> tuple[Tensor, Tensor]:
    B, H, T, C = query.shape
    G, R = key.shape[1], cos.shape[-1]
    outs = empty_heads(query, dtype), empty_heads(key, dtype)
    if not outs[0].numel():
        return outs
    query, key, cos, sin = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, cos, sin))
    cos, sin = cos.expand(B, -1, -1), sin.expand(B, -1, -1)
    strides = (*query.stride()[:3], *key.stride()[:3], *cos.stride()[:2], *sin.stride()[:2])
    sizes = {name: triton.next_power_of_2(n) for name, n in (("H_ROWS", H), ("G_ROWS", G), ("HALF", R // 2))}
    sizes["REST"] = triton.next_power_of_2(max(1, C - R))
    numbers = sizes["H_ROWS"] * sizes["HALF"]
    _rotary_kernel[(B * T,)](
        *(query, key, cos, sin, *outs, T, *strides), BACKWARD=backward, H=H, G=G, C=C, R=R, **sizes,
        num_warps=min(16, max(1, numbers // 512)),
    )  # fmt: skip
    return outs
