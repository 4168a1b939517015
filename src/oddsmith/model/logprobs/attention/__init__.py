"""Tree attention: each token of a packed row attends to its ancestors and itself (see ``batching/forest.py``).

transformers' attention layers call ``forest_attention`` under the name ``NAME``; it dispatches to:

    dense.py    the whole [T, T] mask in plain torch: the reference, and soft caps on a CPU
    cpu.py      one path of the forest at a time, against its ancestors and itself
    cuda.py     chooses a kernel for a GPU, after comparing it with the reference on that GPU:
    flash.py    one call for all paths, keys and values gathered
    flex.py     FlexAttention, for what flash kernels do not take
    sinks.py    attention sinks, applied to the result of any

Every path is a causal sequence with ``depth`` ancestors before its first query: query i sees keys 0 to depth + i,
aligned at the bottom right.

            keys  a a a | 0 1 2        a: ancestors
    query 0       x x x | x . .
          1       x x x | x x .
          2       x x x | x x x

Shape suffixes: T tokens of the row, H query heads, G key and value heads, C channels of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig

from ....batching.forest import ForestLayout
from ....errors import ModelError
from ...modules import modules_of
from ..current_layout import current_layout, set_layout
from .cpu import paths_forest_attention
from .cuda import cuda_forest_attention
from .dense import dense_forest_attention

NAME = "oddsmith_forest"
# Tensors that layers pass on to their attention, and that say nothing about which keys a query sees
_HARMLESS = ("position_ids", "cache_position", "s_aux")


def forest_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Compute tree attention for one of transformers' attention layers, and return it with ``None`` for the weights.

    Arguments and result are those of ``dense_forest_attention``, under transformers' names: ``s_aux`` are the sinks, a
    chunk is the module's. ``scaling`` is 1 / sqrt(C) by default. A layer that asks for anything else raises
    ``ModelError``; the self-check recognises such a model before training.
    """
    require_packable(attention_mask, dropout=dropout, **others)
    forest = current_layout(query.shape[2])
    if torch.is_autocast_enabled(query.device.type):  # as PyTorch's own attention does
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    query = _scaled_by_depth(module, query, forest)
    window, chunk = (
        size if size and size < forest.longest_keys else None for size in (sliding_window, _chunk_size(module))
    )
    attend = {"cpu": paths_forest_attention, "cuda": cuda_forest_attention}.get(
        query.device.type, dense_forest_attention
    )
    if softcap is not None and query.device.type == "cpu":
        attend = dense_forest_attention
    out = attend(query, key, value, forest, scaling=scaling, window=window, chunk=chunk, softcap=softcap, sinks=s_aux)
    return out.contiguous(), None  # as transformers' own; some layers take a view of it


AttentionInterface.register(NAME, forest_attention)


def _chunk_size(module: nn.Module) -> int | None:
    """Return the size of the chunks of a layer's attention, which transformers says with a mask alone."""
    config: Any = getattr(module, "config", None)
    kinds, layer = getattr(config, "layer_types", None), getattr(module, "layer_idx", None)
    chunked = kinds is not None and layer is not None and kinds[layer] == "chunked_attention"
    return config.attention_chunk_size if chunked else None


def _scaled_by_depth(module: Any, query: Tensor, forest: ForestLayout) -> Tensor:
    """Return queries that Llama 4 has scaled by the places in the row, scaled by depths instead.

    Its layers without rotation multiply a query by ``log1p(floor((place + 1) / floor_scale)) * attn_scale + 1``.
    """
    rows = len(forest.depth_T)
    tuned = getattr(module, "attn_temperature_tuning", False) and not getattr(module, "use_rope", True)
    if not tuned or rows < module.floor_scale:  # below it the factor is 1
        return query

    def scale(place_T: Tensor) -> Tensor:
        return torch.log1p(torch.floor((place_T.float() + 1.0) / module.floor_scale)) * module.attn_scale + 1.0

    row_T = torch.arange(rows, device=query.device)
    return (query * (scale(forest.depth_T) / scale(row_T)).unsqueeze(-1)).to(query.dtype)


def require_packable(
    attention_mask: Tensor | None = None,
    *,
    dropout: float = 0.0,
    is_causal: bool | None = True,
    **others: Any,
) -> None:
    """Raise ``ModelError`` where an attention layer asks for something else than tree attention.

    That is a mask, a view of later tokens, dropout (two sequences that share a token would share its dropout mask), and
    any other tensor: biases, chosen keys or blocks of keys.
    """
    unknown = [name for name, value in others.items() if isinstance(value, Tensor) and name not in _HARMLESS]
    if unknown:
        raise ModelError(f"its attention uses {' and '.join(unknown)}, which packed rows do not know")
    if attention_mask is not None or dropout or is_causal is False:
        raise ModelError("this attention layer cannot work on packed rows")


@contextmanager
def forest_attention_in(model: nn.Module) -> Iterator[None]:
    """Let the model's layers call :func:`forest_attention` (and make no mask) while inside.

    Enter it around forward *and* backward pass: checkpointed layers run again in the backward pass.
    """
    # ``hasattr`` would search each of thousands of modules for a parameter or a child of this name. A wrapper may have
    # settings of its own under this name, as DeepSpeed's has.
    owned: list[Any] = [vars(module).get("config") for module in modules_of(model)]
    configs = {id(config): config for config in owned if isinstance(config, PreTrainedConfig)}
    before = {key: getattr(config, "_attn_implementation_internal", None) for key, config in configs.items()}
    try:
        for config in configs.values():
            config._attn_implementation_internal = NAME
        yield
    finally:
        set_layout(None)
        for key, config in configs.items():
            config._attn_implementation_internal = before[key]
