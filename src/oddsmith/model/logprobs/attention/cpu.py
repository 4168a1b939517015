"""Tree attention on a CPU: matrix products for a block of queries of a path at a time, forward and backward.

    S = scaling * Q K^T       P = softmax(S)      O = P V
    dV = P^T dO               dS = P * (dO V^T - rowsum(dO * O))
    dQ = scaling * dS K       dK = scaling * dS^T Q

With the logarithm of the sums, lse, as a second result, dS = P * (dO V^T - rowsum(dO * O) + dlse).

PyTorch's own flash kernel takes twice as long for these sizes, on whole paths and in either direction (docs/log.md).

S is float32 also where Q and K are bfloat16: a score of 20 would be rounded by 0.04, its weight by 4%. A product of
bfloat16 numbers is exact in float32, so the processor's bfloat16 units may compute it.

P is saved for the backward pass where rows are short, and computed again where they are long: it grows with the number
of keys, everything else that a layer saves does not.

Shape suffixes: G key and value heads, N query heads that share one, Q queries and K keys of a block, C channels, R =
Q * N. The N queries of a token that share a key head are neighbouring rows, [G, Q * N, C], so a key head is read once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ....batching.forest import ForestLayout, Path
from ..backward_pass import exact_backward
from .sinks import with_sinks

# Scores of a block stay in the cache: 9 heads x 128 queries x 450 keys are 2 MB.
_BLOCK_QUERIES = 128
# P is saved where a token sees at most this many keys on average. For heads of 64 channels that is 8 times as much as a
# hidden state; a layer saves about 12 of those.
_MAX_SAVED_KEYS = 512


def paths_forest_attention(
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
    """Compute ``dense_forest_attention`` path by path; ``softcap`` is not supported."""
    work = [(path, list(_blocks(path, window, chunk))) for path in forest.paths]
    seen = sum(block.scores for _, blocks in work for block in blocks)
    saves_weights = torch.is_grad_enabled() and _are_saved(seen, query.shape[2])
    with torch.autocast("cpu", enabled=False):  # which would round the scores to bfloat16
        out, lse = _PathsAttention.apply(query, key, value, work, scaling, saves_weights, sinks is not None)
        return out if sinks is None else with_sinks(out, lse, sinks)


def saved_weights(forest: ForestLayout) -> int:
    """Return how many weights each head of a layer saves for its backward pass."""
    seen = sum(block.scores for path in forest.paths for block in _blocks(path, None, None))
    return seen if _are_saved(seen, len(forest.depth_T)) else 0


def _are_saved(seen: int, tokens: int) -> bool:
    return seen <= _MAX_SAVED_KEYS * tokens


class _Block(NamedTuple):
    """Some queries of a path and the keys they see."""

    rows: slice  # of the queries
    keys: slice  # among those of the path
    diagonal: int  # the first query sees the first ``diagonal + 1`` of these keys, the next one more, and so on
    window: int | None  # a query sees only this many of the keys up to its own

    @property
    def scores(self) -> int:
        """Count the scores that each head computes."""
        return (self.rows.stop - self.rows.start) * (self.keys.stop - self.keys.start)


def _blocks(path: Path, window: int | None, chunk: int | None) -> Iterator[_Block]:
    start = path.start
    while start < path.end:
        end = min(start + _BLOCK_QUERIES, path.end)
        depth = path.depth + start - path.start
        first = 0 if window is None else max(0, depth - window + 1)
        if chunk is not None:  # a block is in one chunk, so its queries see the same keys before the diagonal
            end, first = min(end, start + chunk - depth % chunk), max(first, depth // chunk * chunk)
        yield _Block(slice(start, end), slice(first, depth + end - start), depth - first, window)
        start = end


class _PathsAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        work: list[tuple[Path, list[_Block]]],
        scaling: float,
        saves_weights: bool,
        wants_lse: bool,
    ) -> tuple[Tensor, Tensor | None]:
        groups, N = key.shape[1], query.shape[1] // key.shape[1]
        q_GRC = _by_group(query.transpose(1, 2), groups)
        out_GRC = q_GRC.new_empty(*q_GRC.shape[:2], value.shape[-1])
        exact = torch.promote_types(query.dtype, torch.float32)
        lse_GR1 = q_GRC.new_empty(*q_GRC.shape[:2], 1, dtype=exact) if wants_lse else None
        saved = []
        for path, blocks in work:
            path_key, path_value = _with_ancestors(key, path), _with_ancestors(value, path)
            for block in blocks:
                rows = slice(block.rows.start * N, block.rows.stop * N)
                scores = _scores(q_GRC[:, rows], path_key[:, block.keys], block, scaling)
                exact_weights = torch.softmax(scores, -1)
                if lse_GR1 is not None:  # the largest weight is 1 / sum(exp(scores - largest score))
                    lse_GR1[:, rows] = scores.amax(-1, keepdim=True) - exact_weights.amax(-1, keepdim=True).log()
                weights = exact_weights.to(query.dtype)
                torch.bmm(weights, path_value[:, block.keys], out=out_GRC[:, rows])
                if saves_weights:
                    saved.append(weights)
        out = _by_row(out_GRC, N)
        ctx.save_for_backward(query, key, value, out, *saved)
        ctx.work, ctx.scaling = work, scaling
        return out, None if lse_GR1 is None else _by_row(lse_GR1, N).squeeze(-1)

    @staticmethod
    @exact_backward
    def backward(ctx: Any, d_out: Tensor, d_lse: Tensor | None) -> tuple[Tensor | None, ...]:
        query, key, value, out, *saved = ctx.saved_tensors
        scaling, groups, N = ctx.scaling, key.shape[1], query.shape[1] // key.shape[1]
        exact = torch.promote_types(query.dtype, torch.float32)
        q_GRC = _by_group(query.transpose(1, 2), groups)
        # dO V^T - rowsum(dO * O) as one product: the sum is two more channels of dO, against ones in V.
        row_sum = (d_out.to(exact) * out).sum(-1, keepdim=True).neg_()
        if d_lse is not None:
            row_sum += d_lse.unsqueeze(-1)
        d_out_GRC = _by_group(torch.cat([d_out, *_high_and_low(row_sum, d_out.dtype)], -1), groups)
        d_query_GRC = torch.empty_like(q_GRC)
        d_key, d_value = torch.zeros_like(key), torch.zeros_like(value)
        for path, blocks in ctx.work:
            path_key, path_value = _with_ancestors(key, path), _with_ancestors(value, path)
            value_and_ones = F.pad(path_value, (0, 2), value=1.0)
            path_d_key, path_d_value = torch.zeros_like(path_key), torch.zeros_like(path_value)
            for block in blocks:
                rows, keys = slice(block.rows.start * N, block.rows.stop * N), block.keys
                q, d_o = q_GRC[:, rows], d_out_GRC[:, rows]
                weights = (
                    saved.pop(0)
                    if saved
                    else torch.softmax(_scores(q, path_key[:, keys], block, scaling), -1).to(q.dtype)
                )
                d_scores = torch.bmm(d_o, value_and_ones[:, keys].transpose(1, 2)).mul_(weights)
                path_d_value[:, keys].baddbmm_(weights.transpose(1, 2), d_o[..., :-2])
                path_d_key[:, keys].baddbmm_(d_scores.transpose(1, 2), q, alpha=scaling)
                d_query_GRC[:, rows].baddbmm_(d_scores, path_key[:, keys], beta=0, alpha=scaling)
            _add_to_ancestors(d_key, path_d_key, path)
            _add_to_ancestors(d_value, path_d_value, path)
        return _by_row(d_query_GRC, N).transpose(1, 2), d_key, d_value, None, None, None, None


def _scores(q: Tensor, keys: Tensor, block: _Block, scaling: float) -> Tensor:
    """Return S of a block, [G, R, K], in float32 or better; -inf where a query does not see a key."""
    exact = torch.promote_types(q.dtype, torch.float32)
    with _bfloat16_products(q.dtype == torch.bfloat16):
        zero = q.new_zeros((), dtype=exact)
        scores = torch.baddbmm(zero, q.to(exact), keys.to(exact).transpose(1, 2), beta=0, alpha=scaling)
    return _masked(scores, block)


@contextmanager
def _bfloat16_products(wanted: bool) -> Iterator[None]:
    """Let float32 products multiply in bfloat16, and add in float32; this is exact for bfloat16 numbers."""
    if not wanted:
        yield
        return
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # it replaces its own module
    before, settings.fp32_precision = settings.fp32_precision, "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before


def _masked(scores: Tensor, block: _Block) -> Tensor:
    """Set the scores of a block to -inf where a query does not see a key, in place."""
    queries, keys = block.rows.stop - block.rows.start, scores.shape[-1]
    by_query = scores.view(len(scores), queries, -1, keys)
    # All queries see the keys before the diagonal. (Adding is eight times as fast as filling by a mask.)
    by_query[..., block.diagonal :] += _triangle(queries, scores.dtype)
    if block.window is not None:
        past = torch.ones(queries, keys, dtype=torch.bool).tril_(block.diagonal - block.window)
        by_query.masked_fill_(past.unsqueeze(1), float("-inf"))
    return scores


@lru_cache(maxsize=256)
def _triangle(queries: int, dtype: torch.dtype) -> Tensor:
    """Return -inf above the diagonal and 0 elsewhere, [Q, 1, Q]."""
    return torch.full((queries, queries), float("-inf"), dtype=dtype).triu_(1).unsqueeze(1)


def _with_ancestors(tensor: Tensor, path: Path) -> Tensor:
    """Return the keys or values of a path: those of its ancestors, then its own; [G, K, C]."""
    runs = [tensor[0, :, start:end] for start, end in (*path.ancestors, (path.start, path.end))]
    return runs[0] if len(runs) == 1 else torch.cat(runs, dim=1)


def _add_to_ancestors(total: Tensor, of_path: Tensor, path: Path) -> None:
    """Add gradients of what :func:`_with_ancestors` returned, [G, K, C], where it came from."""
    offset = 0
    for start, end in (*path.ancestors, (path.start, path.end)):
        total[0, :, start:end] += of_path[:, offset : offset + end - start]
        offset += end - start


def _by_group(tensor: Tensor, groups: int) -> Tensor:
    """Reshape [1, T, H, C] to [G, T * N, C], contiguous: the queries of a block are then a slice."""
    _, rows, _, channels = tensor.shape
    return tensor.reshape(rows, groups, -1, channels).transpose(0, 1).reshape(groups, -1, channels)


def _by_row(tensor: Tensor, N: int) -> Tensor:
    """Reshape [G, T * N, C] to [1, T, H, C]."""
    groups, rows, channels = tensor.shape
    return tensor.view(groups, rows // N, N, channels).transpose(0, 1).reshape(1, rows // N, -1, channels)


def _high_and_low(tensor: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Split a tensor into two of a coarser dtype that add up to it."""
    high = tensor.to(dtype)
    return high, (tensor - high).to(dtype)
