"""Attention sinks: a learned score of each head that takes a share of the softmax and has no value.

The other weights are what they would be without it, times one number per query:

    exp(s_k) / (exp(sink) + sum_j exp(s_j))   =   softmax(s)_k * sigmoid(lse - sink),     lse = log sum_j exp(s_j)

So any attention that also returns ``lse``, with its gradient, has sinks.
"""

from __future__ import annotations

import torch
from torch import Tensor


def with_sinks(out: Tensor, lse: Tensor, sinks: Tensor) -> Tensor:
    """Return attention with sinks from the same without them.

    Args:
        out: [1, T, H, C].
        lse: log of the sum of a query's exponentiated scores, float32 or better [1, T, H].
        sinks: [H].

    Returns:
        [1, T, H, C] in the dtype of ``out``; multiplied in float32 or better.
    """
    share_1TH = torch.sigmoid(lse - sinks.to(lse.dtype))
    return (out * share_1TH.unsqueeze(-1)).to(out.dtype)
