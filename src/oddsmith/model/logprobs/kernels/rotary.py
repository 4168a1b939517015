"""Rotary position embedding of queries and keys, of transformers' usual kind: the halves of a head's channels rotate.

    y = x * cos + rotate_half(x) * sin,  rotate_half(x) = (-x2, x1) with x1 and x2 the halves of the rotated channels

The first R channels rotate, as many as ``cos`` and ``sin`` have; others are passed on. Shape letters: B batch,
T tokens, H query heads, G key heads, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import operator

# ---- Plain references, with the operators' arguments


def reference_rotary(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Return rotated queries, [B, H, T, C], and keys, [B, G, T, C]; ``cos`` and ``sin`` are [B or 1, T, R].

    All products and sums are rounded to the dtype of the results, that of the promoted inputs.
    """
    cos, sin, rotated = cos.unsqueeze(1), sin.unsqueeze(1), cos.shape[-1]

    def embedded(x: Tensor) -> Tensor:
        first, rest = x[..., :rotated], x[..., rotated:]
        x1, x2 = first.chunk(2, -1)
        y = first * cos + torch.cat((-x2, x1), -1) * sin
        return torch.cat((y, rest.to(y.dtype)), -1)

    return embedded(query), embedded(key)


def reference_rotary_backward(
    grad_query: Tensor, grad_key: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the gradients of queries and keys, of ``dtype``: with s = dY * sin, dX = dY * cos + (s2, -s1)."""
    cos, sin, rotated = cos.unsqueeze(1).float(), sin.unsqueeze(1).float(), cos.shape[-1]

    def embedded(grad: Tensor) -> Tensor:
        first, rest = grad[..., :rotated].float(), grad[..., rotated:]
        s1, s2 = (first * sin).chunk(2, -1)
        return torch.cat(((first * cos + torch.cat((s2, -s1), -1)).to(dtype), rest.to(dtype)), -1)

    return embedded(grad_query), embedded(grad_key)


# ---- Operators


def empty_heads(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a new [B, H, T, C] tensor; a token's heads lie side by side in memory, as linear layers make them."""
    B, H, T, C = x.shape
    return x.new_empty(B, T, H, C, dtype=dtype).transpose(1, 2)


def _empty_rotary(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(query.dtype, cos.dtype)
    return empty_heads(query, dtype), empty_heads(key, dtype)


def _empty_rotary_backward(
    grad_query: Tensor, grad_key: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    return empty_heads(grad_query, dtype), empty_heads(grad_key, dtype)


rotary = operator(
    "rotary(Tensor query, Tensor key, Tensor cos, Tensor sin) -> (Tensor, Tensor)", reference_rotary, _empty_rotary
)
rotary_backward = operator(
    "rotary_backward(Tensor grad_query, Tensor grad_key, Tensor cos, Tensor sin, ScalarType dtype) -> (Tensor, Tensor)",
    reference_rotary_backward,
    _empty_rotary_backward,
)
