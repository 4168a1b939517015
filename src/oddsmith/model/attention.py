"""Tree attention: each token of a packed row attends to its ancestors and itself (see ``batching/forest.py``).

One interface, registered with transformers under ``NAME``, and a way to compute it per backend:

    dense     the whole [T, T] mask, in plain torch: the reference, and what does soft caps and unequal head sizes
    paths     CPU: one path of the forest at a time, against its ancestors and itself
    varlen    CUDA: one call for all paths, keys and values gathered (``attention_cuda.py``)

Every path is a causal sequence whose first queries have ``depth`` keys before them: query i sees keys 0 to depth + i,
aligned at the bottom right.

            keys  a a a | 0 1 2        a: ancestors
    query 0       x x x | x . .
          1       x x x | x x .
          2       x x x | x x x

Shape suffixes: T tokens of the row, H query heads, G key and value heads, C channels of a head, Q queries and K keys of
a path.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from ..batching.forest import ForestLayout, Path
from ..errors import ModelError
from .attention_cuda import cuda_forest_attention

NAME = "oddsmith_forest"


def forest_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    forest: ForestLayout | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers' attention layers call.

    Args:
        module: The attention layer.
        query: [1, H, T, C].
        key: [1, G, T, C], H a multiple of G.
        value: [1, G, T, C'].
        attention_mask: None; the layout says it all.
        forest: The layout.
        scaling: Factor of the scores; 1 / sqrt(C) by default.
        dropout: 0; a token that two sequences share would have one mask for both.
        sliding_window: Tokens see only this many, themselves included.
        softcap: Scores become softcap * tanh(scores / softcap).
        s_aux: Attention sinks, which are not supported.
        **kwargs: Not used.

    Returns:
        [1, T, H, C'] and None.

    Raises:
        ModelError: A model that asks for what cannot be done on a packed row; it is recognised before training.
    """
    if forest is None or attention_mask is not None or s_aux is not None or dropout:
        raise ModelError("this attention layer cannot work on packed rows")
    if torch.is_autocast_enabled(query.device.type):  # as PyTorch's own attention does
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    window = sliding_window if sliding_window and sliding_window < forest.longest_keys else None
    if softcap is not None or query.shape[-1] != value.shape[-1]:
        attend = dense_forest_attention
    else:
        attend = {"cpu": paths_forest_attention, "cuda": cuda_forest_attention}.get(
            query.device.type, dense_forest_attention
        )
    return attend(query, key, value, forest, scaling=scaling, window=window, softcap=softcap), None


AttentionInterface.register(NAME, forest_attention)


@contextmanager
def forest_attention_in(model: nn.Module) -> Iterator[None]:
    """While inside, the model's layers call :func:`forest_attention` (and ask for no mask).

    Enter it around forward *and* backward pass: checkpointed layers run again in the backward pass.
    """
    owners: list[Any] = [module for module in model.modules() if hasattr(module, "config")]
    configs = {id(owner.config): owner.config for owner in owners}
    before = {key: getattr(config, "_attn_implementation_internal", None) for key, config in configs.items()}
    try:
        for config in configs.values():
            config._attn_implementation_internal = NAME
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation_internal = before[key]


def dense_forest_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    forest: ForestLayout,
    *,
    scaling: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Tree attention with the whole mask: the reference.

    Args:
        query: [1, H, T, C].
        key: [1, G, T, C].
        value: [1, G, T, C'].
        forest: The layout.
        scaling: Factor of the scores.
        window: Tokens see only this many, themselves included; all by default.
        softcap: Scores become softcap * tanh(scores / softcap).

    Returns:
        [1, T, H, C'] in the dtype of ``query``; the softmax is in float32 or better.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = (query @ key.transpose(2, 3)) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~forest.ancestor_mask(window), float("-inf"))
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
    return (weights @ value).transpose(1, 2)


def paths_forest_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    forest: ForestLayout,
    *,
    scaling: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Tree attention on a CPU, path by path. Arguments and result as of :func:`dense_forest_attention`; no soft cap."""
    return _PathsAttention.apply(query, key, value, forest, scaling, window)


_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class _PathsAttention(torch.autograd.Function):
    """PyTorch's flash kernel for each path forward, and matrix products for blocks of its queries backward.

        S = scaling * Q K^T       P = softmax(S)      O = P V
        dV = P^T dO               dS = P * (dO V^T - rowsum(dO * O))
        dQ = scaling * dS K       dK = scaling * dS^T Q

    Scores are never kept: S is computed again. In bfloat16 a score of 20 would be rounded by 0.04, its weight by 4%;
    so what the product gives there is S - logsumexp(S), by two more channels: near 0 wherever weights are not. The
    flash kernel's own backward pass takes twice as long in bfloat16 (docs/log.md). Query heads that share a key head
    stand below each other, [G, H / G * Q, C], so that a key head is read once.
    """

    @staticmethod
    def forward(ctx, query, key, value, forest, scaling, window):
        _, heads, rows, channels = query.shape
        out = query.new_empty(1, rows, heads, channels)
        lse = query.new_empty(1, heads, rows, dtype=torch.promote_types(query.dtype, torch.float32))
        for path in forest.paths:
            own, mask = slice(path.start, path.end), _path_mask(path, window, query.dtype)
            keys, values = _with_ancestors(key, path)[None], _with_ancestors(value, path)[None]
            path_out, lse[:, :, own] = _flash(
                query[:, :, own], keys, values, 0.0, mask is None, attn_mask=mask, scale=scaling
            )
            out[:, own] = path_out.transpose(1, 2)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.forest, ctx.scaling, ctx.window = forest, scaling, window
        return out

    @staticmethod
    def backward(ctx, d_out):
        query, key, value, out, lse = ctx.saved_tensors
        scaling, groups = ctx.scaling, key.shape[1]
        row_sum = (d_out.to(lse.dtype) * out).sum(-1, keepdim=True).to(query.dtype).transpose(1, 2)
        d_out = d_out.transpose(1, 2)
        is_half = query.dtype in (torch.bfloat16, torch.float16)
        less_lse = torch.cat([query, *_high_and_low(lse.unsqueeze(-1) / -scaling, query.dtype)], -1)
        d_query = torch.empty_like(query)
        d_key, d_value = torch.zeros_like(key), torch.zeros_like(value)
        for path in ctx.forest.paths:
            path_key, path_value = _with_ancestors(key, path), _with_ancestors(value, path)
            key_and_ones = F.pad(path_key, (0, 2), value=1.0) if is_half else path_key
            path_d_key, path_d_value = torch.zeros_like(path_key), torch.zeros_like(path_value)
            for block in _blocks(path, ctx.window):
                q, d_o = _stacked(query, block, groups), _stacked(d_out, block, groups)
                scores = _product(
                    _stacked(less_lse, block, groups) if is_half else q, key_and_ones[:, block.keys], scaling
                )
                weights = torch.softmax(_masked(scores, block, ctx.window), -1)
                d_scores = torch.baddbmm(
                    _stacked(row_sum, block, groups), d_o, path_value[:, block.keys].transpose(1, 2), beta=-1
                ).mul_(weights)
                path_d_value[:, block.keys].baddbmm_(weights.transpose(1, 2), d_o)
                path_d_key[:, block.keys].baddbmm_(d_scores.transpose(1, 2), q, alpha=scaling)
                block_d_query = torch.bmm(d_scores, path_key[:, block.keys]).mul_(scaling)
                d_query[0, :, block.rows] = block_d_query.view(query.shape[1], -1, query.shape[-1])
            offset = 0
            for start, end in (*path.ancestors, (path.start, path.end)):
                d_key[0, :, start:end] += path_d_key[:, offset : offset + end - start]
                d_value[0, :, start:end] += path_d_value[:, offset : offset + end - start]
                offset += end - start
        return d_query, d_key, d_value, None, None, None


class _Block(NamedTuple):
    """Some queries of a path and the keys they see.

    Args:
        rows: Rows of the queries.
        keys: Their keys, among those of the path.
        diagonal: The first query sees the first ``diagonal + 1`` of these keys, the next one more, and so on.
    """

    rows: slice
    keys: slice
    diagonal: int


# Scores of a block stay in the cache: 9 heads x 128 queries x 450 keys are 2 MB.
_BLOCK_QUERIES = 128


def _blocks(path: Path, window: int | None) -> Iterator[_Block]:
    for start in range(path.start, path.end, _BLOCK_QUERIES):
        end = min(start + _BLOCK_QUERIES, path.end)
        depth = path.depth + start - path.start
        first = 0 if window is None else max(0, depth - window + 1)
        yield _Block(slice(start, end), slice(first, depth + end - start), depth - first)


def _with_ancestors(tensor: Tensor, path: Path) -> Tensor:
    """Keys or values of a path: those of its ancestors, then its own; [G, K, C]."""
    runs = [tensor[0, :, start:end] for start, end in (*path.ancestors, (path.start, path.end))]
    return runs[0] if len(runs) == 1 else torch.cat(runs, dim=1)


def _path_mask(path: Path, window: int | None, dtype: torch.dtype) -> Tensor | None:
    """What is added to the scores of a path, [Q, K]: 0 or -inf; ``None`` where plain causal attention is meant."""
    queries, depth = path.end - path.start, path.depth
    if window is not None and window >= depth + queries:
        window = None
    if not depth and window is None:
        return None
    allowed = torch.ones(queries, depth + queries, dtype=torch.bool).tril_(depth)
    if window is not None:
        allowed.triu_(depth - window + 1)
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, float("-inf"))


def _stacked(tensor: Tensor, block: _Block, groups: int) -> Tensor:
    """The block's queries of all heads, [1, H, T, C] -> [G, H / G * Q, C]."""
    return tensor[0, :, block.rows].reshape(groups, -1, tensor.shape[-1])


def _high_and_low(tensor: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two tensors of a coarser type whose sum is the tensor."""
    high = tensor.to(dtype)
    return high, (tensor - high).to(dtype)


def _product(left: Tensor, right: Tensor, factor: float = 1.0) -> Tensor:
    """factor * left right^T, rounded once: [G, Q, C] and [G, K, C] -> [G, Q, K]."""
    return torch.baddbmm(left.new_zeros(()), left, right.transpose(1, 2), beta=0, alpha=factor)


def _masked(scores: Tensor, block: _Block, window: int | None) -> Tensor:
    """The scores of a block, in place, -inf where a query does not see a key."""
    queries, keys = block.rows.stop - block.rows.start, scores.shape[-1]
    by_head = scores.view(len(scores), -1, queries, keys)
    # What comes before, all queries see. (Adding is eight times as fast as filling by a mask.)
    by_head[..., block.diagonal :] += torch.full((queries, queries), float("-inf"), dtype=scores.dtype).triu_(1)
    if window is not None:
        past = torch.ones(queries, keys, dtype=torch.bool).tril_(block.diagonal - window)
        by_head.masked_fill_(past, float("-inf"))
    return scores
