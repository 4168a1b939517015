"""Tree attention: each token of a packed row attends to its ancestors and itself (see ``batching/forest.py``).

One interface, registered with transformers under ``NAME``, and a way to compute it per backend:

    dense     the whole [T, T] mask, in plain torch: the reference, and what does soft caps and unequal head sizes
    paths     CPU: PyTorch's flash kernel, one path of the forest at a time, against its ancestors and itself
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
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from ..batching.forest import ForestLayout, Path
from ..errors import ModelError
from .attention_cuda import cuda_forest_attention

NAME = "oddsmith_forest"

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


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


class _PathsAttention(torch.autograd.Function):
    """PyTorch's flash kernel for each path; gradients of shared keys are added up in place.

    In bfloat16 the backward pass is written out in matrix products: the flash kernel's is half as fast there
    (docs/log.md). Scores are then recomputed in float32, as the flash kernel does.
    """

    @staticmethod
    def forward(ctx, query, key, value, forest, scaling, window):
        _, heads, rows, channels = query.shape
        out = query.new_empty(1, rows, heads, channels)
        lse = query.new_empty(1, heads, rows, dtype=torch.promote_types(query.dtype, torch.float32))
        for path in forest.paths:
            own = slice(path.start, path.end)
            mask = _path_mask(path, window, query.dtype)
            path_out, path_lse = _flash(
                query[:, :, own],
                _with_ancestors(key, path),
                _with_ancestors(value, path),
                0.0,
                mask is None,
                attn_mask=mask,
                scale=scaling,
            )
            out[:, own] = path_out.transpose(1, 2)
            lse[:, :, own] = path_lse
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.forest, ctx.scaling, ctx.window = forest, scaling, window
        return out

    @staticmethod
    def backward(ctx, d_out):
        query, key, value, out, lse = ctx.saved_tensors
        d_query = torch.empty_like(query)
        d_key, d_value = torch.zeros_like(key), torch.zeros_like(value)
        backward = _path_backward_in_products if query.dtype == torch.bfloat16 else _path_backward_by_kernel
        for path in ctx.forest.paths:
            own = slice(path.start, path.end)
            d_query[:, :, own], path_d_key, path_d_value = backward(
                d_out[:, own].transpose(1, 2),
                query[:, :, own],
                _with_ancestors(key, path),
                _with_ancestors(value, path),
                out[:, own].transpose(1, 2),
                lse[:, :, own],
                path,
                ctx.scaling,
                ctx.window,
            )
            offset = 0
            for start, end in (*path.ancestors, (path.start, path.end)):
                d_key[:, :, start:end] += path_d_key[:, :, offset : offset + end - start]
                d_value[:, :, start:end] += path_d_value[:, :, offset : offset + end - start]
                offset += end - start
        return d_query, d_key, d_value, None, None, None


def _with_ancestors(tensor: Tensor, path: Path) -> Tensor:
    """Keys or values of a path: those of its ancestors, then its own; [1, G, K, C]."""
    runs = [tensor[:, :, start:end] for start, end in (*path.ancestors, (path.start, path.end))]
    return runs[0] if len(runs) == 1 else torch.cat(runs, dim=2)


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


def _path_backward_by_kernel(d_out, query, key, value, out, lse, path, scaling, window):
    mask = _path_mask(path, window, query.dtype)
    return _flash_backward(d_out, query, key, value, out, lse, 0.0, mask is None, attn_mask=mask, scale=scaling)


def _path_backward_in_products(d_out, query, key, value, out, lse, path, scaling, window):
    """Gradients of one path, a block of queries at a time.

        P = exp(scaling * Q K^T - lse)     dV = P^T dO     dS = P * (dO V^T - rowsum(dO * O))
        dQ = scaling * dS K                dK = scaling * dS^T Q

    Query heads that share a key head stand below each other: [G, H / G * Q, C].
    """
    _, heads, queries, channels = query.shape
    groups, depth = key.shape[1], path.depth
    delta = (d_out.float() * out.float()).sum(-1, keepdim=True)
    d_query = torch.empty_like(query)
    d_key, d_value = torch.zeros_like(key[0]), torch.zeros_like(value[0])
    key_float = key[0].float()
    for start in range(0, queries, _BLOCK_QUERIES):
        end = min(start + _BLOCK_QUERIES, queries)
        first = 0 if window is None else max(0, depth + start - window + 1)
        keys = slice(first, depth + end)
        k, v = key[0, :, keys], value[0, :, keys]
        q, d_o, lse_q, delta_q = (
            tensor[0, :, start:end].reshape(groups, -1, tensor.shape[-1])
            for tensor in (query, d_out, lse.unsqueeze(-1), delta)
        )
        weights = torch.baddbmm(lse_q, q.float(), key_float[:, keys].transpose(1, 2), beta=-1, alpha=scaling).exp_()
        by_head = weights.view(groups, -1, end - start, depth + end - first)
        if window is None:  # only the last keys are not seen by all
            by_head[..., depth + start :].tril_()
        else:
            diagonal = depth + start - first
            by_head.tril_(diagonal).triu_(diagonal - window + 1)
        weights = weights.to(query.dtype)
        d_scores = torch.baddbmm(delta_q.to(query.dtype), d_o, v.transpose(1, 2), beta=-1).mul_(weights)
        d_value[:, keys].baddbmm_(weights.transpose(1, 2), d_o)
        d_key[:, keys].baddbmm_(d_scores.transpose(1, 2), q, alpha=scaling)
        d_query[0, :, start:end] = torch.bmm(d_scores, k).mul_(scaling).view(heads, end - start, channels)
    return d_query, d_key[None], d_value[None]


# Scores of a block of queries stay in the second-level cache.
_BLOCK_QUERIES = 128
