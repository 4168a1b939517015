"""Tree attention by a variable-length flash kernel: all paths in one call.

Keys and values of every path, its ancestors' first, are gathered one after another (``ForestLayout.key_row_K``). Each
path is then a sequence with fewer queries than keys, masked causally at the bottom right: query i of a path with
``depth`` ancestors sees keys 0 to depth + i. flash-attention masks like this since 2.1, and so does PyTorch's
``varlen_attn``, which is a build of it. Soft caps only the first one has, as an argument.

Shape suffixes as in ``attention/__init__.py``, K keys of all paths.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from ....batching.forest import ForestLayout

# Of flash-attention 2, in PyTorch's build and in its own.
_MAX_CHANNELS, _CHANNELS_MULTIPLE = 256, 8
_OLDEST_CAPABILITY = (8, 0)  # Ampere


Kernel = Callable[..., Tensor]


def flash_kernels(device: torch.device) -> dict[str, Kernel]:
    """Return the flash kernels that run on a GPU by their names, the one to prefer first.

    PyTorch's build for AMD counts a window from the top left, which is another mask.
    """
    kernels: dict[str, Kernel] = {}
    if torch.cuda.get_device_capability(device) < _OLDEST_CAPABILITY:
        return kernels
    if find_spec("flash_attn") is not None:
        try:
            from flash_attn import flash_attn_varlen_func
        except ImportError:  # built for another PyTorch, or another generation of it
            pass
        else:
            kernels["flash_attn"] = partial(_by_flash_attn, flash_attn_varlen_func)
    if torch.version.hip is None:
        kernels["PyTorch's flash attention"] = _by_torch
    return kernels


def flash_takes(kernel: Kernel, dtype: torch.dtype, channels: int, value_channels: int, *, capped: bool) -> bool:
    """Return whether a kernel takes such heads, and soft caps where they are asked for."""
    half = dtype in (torch.bfloat16, torch.float16)
    return half and _padded(channels, value_channels) <= _MAX_CHANNELS and (not capped or _caps(kernel))


def flash_forest_attention(
    kernel: Kernel,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    forest: ForestLayout,
    *,
    scaling: float,
    window: int | None = None,
    chunk: None = None,
    softcap: float | None = None,
    sinks: None = None,
) -> Tensor:
    """Compute ``dense_forest_attention`` without chunks and sinks, for heads that :func:`flash_takes`.

    The kernel takes as many channels of a value as of a key, a multiple of 8; zeros that are appended change nothing.
    """
    channels = value.shape[-1]
    padded = _padded(query.shape[-1], channels)
    query, key, value = (_with_channels(tensor, padded) for tensor in (query, key, value))
    # Not ``tensor[0]``, whose gradient is copied into zeros.
    query_THC, key_TGC, value_TGC = (tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value))
    out_THC = kernel(
        query_THC.contiguous(),
        key_TGC.index_select(0, forest.key_row_K),
        value_TGC.index_select(0, forest.key_row_K),
        forest,
        scaling,
        (-1 if window is None else window - 1, 0),  # keys to the left and to the right of a query's own
        **({} if softcap is None else {"softcap": softcap}),
    )
    return out_THC[None, ..., :channels]


def _padded(channels: int, value_channels: int) -> int:
    return -(-max(channels, value_channels) // _CHANNELS_MULTIPLE) * _CHANNELS_MULTIPLE


def _with_channels(tensor: Tensor, channels: int) -> Tensor:
    """Append zeros, where there are too few channels; ``F.pad`` copies where there is nothing to append."""
    missing = channels - tensor.shape[-1]
    return F.pad(tensor, (0, missing)) if missing else tensor


def _caps(kernel: Kernel) -> bool:
    """Return whether a kernel has soft caps: flash-attention since 2.6."""
    return isinstance(kernel, partial) and "softcap" in inspect.signature(kernel.args[0]).parameters


def _by_flash_attn(
    attend: Callable[..., Tensor],
    query_THC: Tensor,
    key_KGC: Tensor,
    value_KGC: Tensor,
    forest: ForestLayout,
    scaling: float,
    window: tuple[int, int],
    **cap: float,
) -> Tensor:
    lengths = forest.query_ends_P, forest.key_ends_P, forest.longest_path, forest.longest_keys
    options: dict[str, Any] = {"softmax_scale": scaling, "causal": True, "window_size": window, **cap}
    if torch.are_deterministic_algorithms_enabled():  # its backward pass adds by atomics otherwise; since 2.4.1
        options["deterministic"] = True
    return attend(query_THC, key_KGC, value_KGC, *lengths, **options)


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
