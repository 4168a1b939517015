"""Tree attention on a GPU: all paths in one call of a variable-length flash kernel, or FlexAttention.

Keys and values of every path, its ancestors' first, are gathered one after another (``ForestLayout.key_row_K``). Each
path is then a sequence with fewer queries than keys, masked causally at the bottom right: query i of a path with
``depth`` ancestors sees keys 0 to depth + i. So flash-attention masks since 2.1, and PyTorch's ``varlen_attn``, which
is a build of it. What it does not do (float32, large heads, soft caps) is left to FlexAttention
(``attention_flex.py``), which reads the mask of the tree itself and gathers nothing.

Shape suffixes as in ``attention.py``, and K for the keys of all paths.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from ....batching.forest import ForestLayout
from .flex import flex_forest_attention

# Of flash-attention 2, in PyTorch's build and in its own.
_LARGEST_HEAD, _HEAD_MULTIPLE = 256, 8
_OLDEST_CAPABILITY = (8, 0)  # Ampere


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
    """Tree attention by the fastest kernel that can. Arguments and result as of ``dense_forest_attention``."""
    attend = _varlen_kernel(query.device) if softcap is None and _flash_takes(query, value) else None
    if attend is None:
        return flex_forest_attention(query, key, value, forest, scaling=scaling, window=window, softcap=softcap)
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


def _flash_takes(query: Tensor, value: Tensor) -> bool:
    channels = query.shape[-1]
    return (
        query.dtype in (torch.bfloat16, torch.float16)
        and value.shape[-1] <= channels <= _LARGEST_HEAD
        and channels % _HEAD_MULTIPLE == 0
    )


@cache
def _varlen_kernel(device: torch.device) -> Callable[..., Tensor] | None:
    """flash-attention where it is installed, or PyTorch's build of it; ``None`` where neither runs.

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
            return _by_flash_attn(flash_attn_varlen_func)
    return _by_torch if torch.version.hip is None else None


def _by_flash_attn(attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def by_flash_attn(
        query_THC: Tensor,
        key_KGC: Tensor,
        value_KGC: Tensor,
        forest: ForestLayout,
        scaling: float,
        window: tuple[int, int],
    ) -> Tensor:
        return attend(
            query_THC,
            key_KGC,
            value_KGC,
            forest.query_ends_P,
            forest.key_ends_P,
            forest.longest_path,
            forest.longest_keys,
            softmax_scale=scaling,
            causal=True,
            window_size=window,
        )

    return by_flash_attn


def _by_torch(
    query_THC: Tensor,
    key_KGC: Tensor,
    value_KGC: Tensor,
    forest: ForestLayout,
    scaling: float,
    window: tuple[int, int],
) -> Tensor:
    attend: Any = varlen_attn  # which may return a pair, if asked to
    # PyTorch 2.11 has no such argument: it takes fewer key heads without being told.
    groups = {"enable_gqa": query_THC.shape[1] != key_KGC.shape[1]} if _varlen_asks_for_groups() else {}
    return attend(
        query_THC,
        key_KGC,
        value_KGC,
        forest.query_ends_P,
        forest.key_ends_P,
        forest.longest_path,
        forest.longest_keys,
        scale=scaling,
        window_size=window,
        **groups,
    )


@cache
def _varlen_asks_for_groups() -> bool:
    return "enable_gqa" in inspect.signature(varlen_attn).parameters
