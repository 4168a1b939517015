"""Tree attention on a GPU: all paths in one call of a variable-length flash kernel, or FlexAttention.

**Flash.** Keys and values of every path, its ancestors' first, are gathered one after another
(``ForestLayout.key_row_K``). Each path is then a sequence with fewer queries than keys, masked causally at the bottom
right: query i of a path with ``depth`` ancestors sees keys 0 to depth + i. flash-attention masks like this since 2.1,
and so does PyTorch's ``varlen_attn``, which is a build of it.

**FlexAttention** takes what flash cannot (float32, large heads, soft caps, chunks, sinks). The mask of the tree is a
function of row and column, and nothing is gathered:

    row sees column   when   column <= row < subtree_end[column]   and   depth[column] >= lowest_depth[row]

Rows are in depth-first order, so the smallest and largest subtree end and depth of a block of rows and of a block of
columns tell whether the first sees all, some or none of the second; no [T, T] mask is made.

Shape suffixes as in ``attention/__init__.py``, K keys of all paths, N blocks of rows or columns.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache, lru_cache, partial
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention
from torch.nn.attention.varlen import varlen_attn

from ....batching.forest import ForestLayout
from .sinks import with_sinks

# Of flash-attention 2, in PyTorch's build and in its own.
_MAX_CHANNELS, _CHANNELS_MULTIPLE = 256, 8
_OLDEST_CAPABILITY = (8, 0)  # Ampere

BLOCK = 128  # rows or columns of FlexAttention's mask
_MIN_CHANNELS = 16  # of FlexAttention's kernel; padding a head's channels with zeros changes nothing


def cuda_forest_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    forest: ForestLayout,
    *,
    scaling: float,
    window: int | None = None,
    chunk: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Compute ``dense_forest_attention`` by the fastest kernel that takes these tensors."""
    plain = softcap is None and chunk is None and sinks is None
    attend = _varlen_kernel(query.device) if plain and _flash_takes(query, value) else None
    if attend is None:
        return flex_forest_attention(
            query, key, value, forest, scaling=scaling, window=window, chunk=chunk, softcap=softcap, sinks=sinks
        )
    channels = value.shape[-1]
    value = F.pad(value, (0, query.shape[-1] - channels))  # as many as keys have; none in most models
    query_THC, key_TGC, value_TGC = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    out_THC = attend(
        query_THC.contiguous(),
        key_TGC.index_select(0, forest.key_row_K),
        value_TGC.index_select(0, forest.key_row_K),
        forest,
        scaling,
        (-1 if window is None else window - 1, 0),  # keys to the left and to the right of a query's own
    )
    return out_THC[None, ..., :channels]


# ---- Flash


def _flash_takes(query: Tensor, value: Tensor) -> bool:
    channels = query.shape[-1]
    return (
        query.dtype in (torch.bfloat16, torch.float16)
        and value.shape[-1] <= channels <= _MAX_CHANNELS
        and channels % _CHANNELS_MULTIPLE == 0
    )


@cache
def _varlen_kernel(device: torch.device) -> Callable[..., Tensor] | None:
    """Return flash-attention where it is installed, or PyTorch's build of it; ``None`` where neither runs.

    PyTorch's build for AMD counts a window from the top left, which is another mask.
    """
    if torch.cuda.get_device_capability(device) < _OLDEST_CAPABILITY:
        return None
    if find_spec("flash_attn") is not None:
        try:
            from flash_attn import flash_attn_varlen_func
        except ImportError:  # built for another PyTorch
            pass
        else:
            return partial(_by_flash_attn, flash_attn_varlen_func)
    return _by_torch if torch.version.hip is None else None


def _by_flash_attn(
    attend: Callable[..., Tensor],
    query_THC: Tensor,
    key_KGC: Tensor,
    value_KGC: Tensor,
    forest: ForestLayout,
    scaling: float,
    window: tuple[int, int],
) -> Tensor:
    lengths = forest.query_ends_P, forest.key_ends_P, forest.longest_path, forest.longest_keys
    return attend(query_THC, key_KGC, value_KGC, *lengths, softmax_scale=scaling, causal=True, window_size=window)


def _by_torch(
    query_THC: Tensor,
    key_KGC: Tensor,
    value_KGC: Tensor,
    forest: ForestLayout,
    scaling: float,
    window: tuple[int, int],
) -> Tensor:
    attend: Any = varlen_attn  # its annotation includes pairs, which it returns only on request
    # PyTorch 2.11 has no such argument: it takes fewer key heads without it.
    groups = {"enable_gqa": query_THC.shape[1] != key_KGC.shape[1]} if _varlen_takes_enable_gqa() else {}
    lengths = forest.query_ends_P, forest.key_ends_P, forest.longest_path, forest.longest_keys
    return attend(query_THC, key_KGC, value_KGC, *lengths, scale=scaling, window_size=window, **groups)


@cache
def _varlen_takes_enable_gqa() -> bool:
    return "enable_gqa" in inspect.signature(varlen_attn).parameters


# ---- FlexAttention


def flex_forest_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    forest: ForestLayout,
    *,
    scaling: float,
    window: int | None = None,
    chunk: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Compute ``dense_forest_attention`` by FlexAttention, for any floating dtype and head size."""
    channels = value.shape[-1]
    query, key, value = (F.pad(t, (0, max(0, _MIN_CHANNELS - t.shape[-1]))) for t in (query, key, value))
    out, also = _compiled()(
        query,
        key,
        value,
        score_mod=None if softcap is None else _capped(softcap, query.device),
        block_mask=block_mask(forest, window, chunk),
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
        kernel_options={"BACKEND": "TRITON"},  # one kernel for all lengths, not another below 128 rows
        return_aux=AuxRequest(lse=sinks is not None),
    )
    out = out[..., :channels].transpose(1, 2)
    return out if sinks is None else with_sinks(out, also.lse.transpose(1, 2), sinks)


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=True)


@cache
def _capped(softcap: float, device: torch.device) -> Callable[..., Tensor]:
    cap = torch.full((), softcap, device=device)  # ``dynamic=True`` would take a number for a shape

    def capped(score: Tensor, batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    return capped


@lru_cache(maxsize=4)  # the layers of a forward pass share one or two; layouts are hashed by identity
def block_mask(forest: ForestLayout, window: int | None, chunk: int | None = None) -> BlockMask:
    """Make FlexAttention's mask of a forest on its device, without making the host wait for the device.

    Without a window and chunks the mask's empty and full blocks are exactly those of the tree. With one of them, a few
    blocks that could be empty or full count as partial.
    """
    subtree_end_T, depth_T = forest.subtree_end_T, forest.depth_T
    lowest_depth_T = forest.lowest_depth(window, chunk)

    # Tensors alone, so that one compiled kernel serves every forest and window.
    def is_ancestor(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return (column <= row) & (row < subtree_end_T[column]) & (depth_T[column] >= lowest_depth_T[row])

    rows = len(depth_T)
    start_N = torch.arange(0, rows, BLOCK, device=depth_T.device)
    min_end_N, max_end_N = _in_blocks(subtree_end_T, 0).aminmax(dim=1)  # columns behind the last row: seen by none
    min_depth_N, max_depth_N = _in_blocks(depth_T, rows).amin(1), _in_blocks(depth_T, -1).amax(1)
    min_lowest_N, max_lowest_N = _in_blocks(lowest_depth_T, rows).amin(1), _in_blocks(lowest_depth_T, -rows).amax(1)
    some_NN = (
        (start_N[None, :] <= start_N[:, None])
        & (max_end_N[None, :] > start_N[:, None])
        & (max_depth_N[None, :] >= min_lowest_N[:, None])
    )
    all_NN = (
        (start_N[None, :] < start_N[:, None])
        & (min_end_N[None, :] >= start_N[:, None] + BLOCK)
        & (min_depth_N[None, :] >= max_lowest_N[:, None])
    )
    return BlockMask.from_kv_blocks(
        *_listed(some_NN & ~all_NN), *_listed(all_NN), BLOCK_SIZE=BLOCK, mask_mod=is_ancestor, seq_lengths=(rows, rows)
    )


def _in_blocks(values_T: Tensor, filler: int) -> Tensor:
    return F.pad(values_T, (0, -len(values_T) % BLOCK), value=filler).view(-1, BLOCK)


def _listed(blocks_NN: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many blocks of columns each block of rows has, int32 [1, 1, N], and which, first in [1, 1, N, N]."""
    counts_N = blocks_NN.sum(-1, dtype=torch.int32)
    which_NN = blocks_NN.int().argsort(dim=-1, descending=True, stable=True).int()
    return counts_N[None, None], which_NN[None, None]
