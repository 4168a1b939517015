"""Tree attention by FlexAttention: the mask of the tree as a function of row and column, in blocks.

    row sees column   when   column <= row < subtree_end[column]   and   depth[column] >= lowest_depth[row]

Rows are in depth-first order, so what blocks of them have in common follows from the largest and smallest subtree end
and depth of each block; no [T, T] mask is made.

Shape suffixes: T tokens of the row, N blocks of rows or columns, and as in ``attention.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from ....batching.forest import ForestLayout

BLOCK = 128
# What the kernel takes at least; zeros beside a head's channels change nothing.
_LEAST_CHANNELS = 16


def flex_forest_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    forest: ForestLayout,
    *,
    scaling: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Tree attention of any floating type and head size. Arguments and result as of ``dense_forest_attention``."""
    channels = value.shape[-1]
    query, key, value = (F.pad(t, (0, max(0, _LEAST_CHANNELS - t.shape[-1]))) for t in (query, key, value))
    out = _compiled()(
        query,
        key,
        value,
        score_mod=None if softcap is None else _capped(softcap, query.device),
        block_mask=block_mask(forest, window),
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
        kernel_options={"BACKEND": "TRITON"},  # one kernel for all lengths, not another below 128 rows
    )
    return out[..., :channels].transpose(1, 2)


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=True)


@cache
def _capped(softcap: float, device: torch.device) -> Callable[..., Tensor]:
    cap = torch.full((), softcap, device=device)  # a number would be taken for a shape by ``dynamic=True``

    def capped(score: Tensor, batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    return capped


@lru_cache(maxsize=4)  # the layers of a forward pass share one or two; layouts are told apart by identity
def block_mask(forest: ForestLayout, window: int | None) -> BlockMask:
    """The mask of a forest for FlexAttention, on the forest's device, made without waiting for it.

    Args:
        forest: The layout.
        window: Tokens see only this many, themselves included; all by default.

    Returns:
        The mask. Without a window its empty and full blocks are exactly those; with one, a few that could be left out
        or taken whole may be looked at in detail.
    """
    subtree_end_T, depth_T = forest.subtree_end_T, forest.depth_T
    window = forest.longest_keys if window is None else window
    lowest_depth_T = depth_T - (window - 1)

    # Tensors alone, so that one compiled kernel serves every forest and window.
    def is_ancestor(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return (column <= row) & (row < subtree_end_T[column]) & (depth_T[column] >= lowest_depth_T[row])

    rows = len(depth_T)
    start_N = torch.arange(0, rows, BLOCK, device=depth_T.device)
    first_end_N, last_end_N = _in_blocks(subtree_end_T, 0).aminmax(dim=1)  # behind the last row: seen by none
    least_depth_N, most_depth_N = _in_blocks(depth_T, rows).amin(1), _in_blocks(depth_T, -1).amax(1)
    some_NN = (
        (start_N[None, :] <= start_N[:, None])
        & (last_end_N[None, :] > start_N[:, None])
        & (least_depth_N[:, None] - most_depth_N[None, :] < window)
    )
    all_NN = (
        (start_N[None, :] < start_N[:, None])
        & (first_end_N[None, :] >= start_N[:, None] + BLOCK)
        & (most_depth_N[:, None] - least_depth_N[None, :] < window)
    )
    return BlockMask.from_kv_blocks(
        *_listed(some_NN & ~all_NN), *_listed(all_NN), BLOCK_SIZE=BLOCK, mask_mod=is_ancestor, seq_lengths=(rows, rows)
    )


def _in_blocks(values_T: Tensor, filler: int) -> Tensor:
    return F.pad(values_T, (0, -len(values_T) % BLOCK), value=filler).view(-1, BLOCK)


def _listed(blocks_NN: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of columns each block of rows has, int32 [1, 1, N], and which, first in a list [1, 1, N, N]."""
    counts_N = blocks_NN.sum(-1, dtype=torch.int32)
    which_NN = blocks_NN.int().argsort(dim=-1, descending=True, stable=True).int()
    return counts_N[None, None], which_NN[None, None]
