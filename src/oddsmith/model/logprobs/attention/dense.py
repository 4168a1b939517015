"""Tree attention with the whole [T, T] mask, in plain torch: the reference of all other ways.

Its memory grows with the square of the row. Shape suffixes as in ``attention/__init__.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ....batching.forest import ForestLayout


def dense_forest_attention(
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
    """Compute tree attention with the whole mask: the reference.

    Args:
        query: [1, H, T, C].
        key: [1, G, T, C].
        value: [1, G, T, C'].
        forest: The layout.
        scaling: Factor of the scores.
        window: A token sees only this many, itself included; all by default.
        chunk: A token sees only those of its own chunk of so many, counted in depth; all by default.
        softcap: Scores become softcap * tanh(scores / softcap).
        sinks: [H], a score of each head that takes its share of the softmax and has no value.

    Returns:
        [1, T, H, C'] in the dtype of ``query``; the softmax is in float32 or better.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = (query @ key.transpose(2, 3)) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~forest.ancestor_mask(window, chunk), float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks.to(scores.dtype)[None, :, None, None].expand(*scores.shape[:3], 1)], -1)
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
    return (weights[..., : key.shape[2]] @ value).transpose(1, 2)
