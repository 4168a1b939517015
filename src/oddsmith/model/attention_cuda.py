"""Tree attention on CUDA: all paths in one call of a variable-length flash kernel.

Keys and values of every path, its ancestors' first, are gathered one after another (``ForestLayout.key_row_K``). Each
path is then a sequence with fewer queries than keys, masked causally at the bottom right: query i of a path with
``depth`` ancestors sees keys 0 to depth + i. That is the alignment of flash-attention since 2.1, of which PyTorch's
``varlen_attn`` is a build; FlexAttention, which takes the place of both for float32 and large heads, reads the mask of
the tree itself and gathers nothing.

Shape suffixes as in ``attention.py``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ..batching.forest import ForestLayout

LARGEST_FLASH_HEAD = 256


def cuda_forest_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    forest: ForestLayout,
    *,
    scaling: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Tree attention by the best kernel. Arguments and result as of ``dense_forest_attention``; no soft cap."""
    half = query.dtype in (torch.bfloat16, torch.float16) and query.shape[-1] <= LARGEST_FLASH_HEAD
    varlen = _varlen_kernel() if half else None
    if varlen is None:
        return _flex_forest_attention(query, key, value, forest, scaling=scaling, window=window)
    query_THC, key_TGC, value_TGC = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    key_KGC, value_KGC = (tensor.index_select(0, forest.key_row_K) for tensor in (key_TGC, value_TGC))
    out_THC = varlen(
        query_THC.contiguous(),
        key_KGC,
        value_KGC,
        forest.query_ends_P,
        forest.key_ends_P,
        forest.longest_path,
        forest.longest_keys,
        scaling,
        (-1 if window is None else window - 1, 0),
    )
    return out_THC[None]


@cache
def _varlen_kernel() -> Callable[..., Tensor] | None:
    """flash-attention where it is installed, or PyTorch's own build of it; ``None`` without either."""
    if find_spec("flash_attn") is not None:
        from flash_attn import flash_attn_varlen_func

        def by_flash_attn(query, key, value, query_ends, key_ends, longest_path, longest_keys, scaling, window):
            return flash_attn_varlen_func(
                query,
                key,
                value,
                query_ends,
                key_ends,
                longest_path,
                longest_keys,
                softmax_scale=scaling,
                causal=True,
                window_size=window,
            )

        return by_flash_attn
    if find_spec("torch.nn.attention.varlen") is None:
        return None
    from torch.nn.attention.varlen import varlen_attn

    if not {"scale", "window_size", "enable_gqa"} <= set(inspect.signature(varlen_attn).parameters):
        return None  # an early version of it

    def by_torch(query, key, value, query_ends, key_ends, longest_path, longest_keys, scaling, window):
        return varlen_attn(
            query,
            key,
            value,
            query_ends,
            key_ends,
            longest_path,
            longest_keys,
            scale=scaling,
            window_size=window,
            enable_gqa=query.shape[1] != key.shape[1],
        )

    return by_torch


def _flex_forest_attention(
    query: Tensor, key: Tensor, value: Tensor, forest: ForestLayout, *, scaling: float, window: int | None
) -> Tensor:
    """FlexAttention over the mask of the tree; arguments as of :func:`cuda_forest_attention`."""
    out = _compiled_flex()(
        query,
        key,
        value,
        block_mask=_block_mask(forest, window),
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2)


@cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


@lru_cache(maxsize=4)  # one forest after another, a few windows each; keyed by identity, as layouts hold tensors
def _block_mask(forest: ForestLayout, window: int | None) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    subtree_end_T, depth_T = forest.subtree_end_T, forest.depth_T

    def is_ancestor(batch, head, row, column):
        sees = (column <= row) & (row < subtree_end_T[column])
        return sees if window is None else sees & (depth_T[row] - depth_T[column] < window)

    rows = len(depth_T)
    return create_block_mask(is_ancestor, None, None, rows, rows, device=depth_T.device)
