"""Draw the tokens of each answer with random numbers of its own, so that they depend on nothing else in the batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

FIRST_LOOK = 256  # the likeliest tokens that are looked at first: they nearly always have ``top_p`` together


class OwnDraws(LogitsProcessor):
    """Choose the next token of each row, and leave it alone in the scores, so that a greedy search takes it.

    Row i takes the token where its tokens, the likeliest first, have a probability above u of those that may be drawn;
    u is the next number of a generator with the seed of the row. Transformers' own sampling draws one number after the
    other for all rows, so an answer there changes with its neighbours.

    Args:
        seeds: One for each row of the batch.
        temperature: Above 0.
        top_p: Draw only from the likeliest tokens that have this probability together; 1 draws from all.
        max_new_tokens: So many numbers each row may need.
    """

    def __init__(self, seeds: Sequence[int], temperature: float, top_p: float, max_new_tokens: int):
        rows = [torch.rand(max_new_tokens, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        self._numbers_BN = torch.stack(rows)
        self._temperature, self._top_p = temperature, top_p
        self._step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        logits_BV = scores.float() / self._temperature
        u_B1 = self._numbers_BN[:, self._step, None].to(scores.device)
        self._step += 1
        sums_BK, tokens_BK = self._likeliest(logits_BV)
        allowed_B1 = sums_BK[:, -1:].clamp(max=self._top_p)
        # The token that makes top_p full may be drawn as a whole.
        full_B1 = torch.searchsorted(sums_BK, allowed_B1).clamp(max=sums_BK.shape[1] - 1)
        place_B1 = torch.searchsorted(sums_BK, u_B1 * sums_BK.gather(1, full_B1), right=True)
        token_B1 = tokens_BK.gather(1, torch.minimum(place_B1, full_B1))
        return torch.full_like(scores, -torch.inf).scatter_(1, token_B1, 0.0)

    def _likeliest(self, logits_BV: Tensor) -> tuple[Tensor, Tensor]:
        """Return the likeliest tokens and the sums of their probabilities, float32: as many as have ``top_p``."""
        norm_B1 = logits_BV.logsumexp(1, keepdim=True)
        size = logits_BV.shape[1]
        count = min(FIRST_LOOK, size) if self._top_p < 1 else size
        while True:
            best = logits_BV.topk(count) if count < size else logits_BV.sort(1, descending=True)
            sums_BK = (best.values - norm_B1).exp().cumsum(1)
            if count == size or bool((sums_BK[:, -1] >= self._top_p).all()):
                return sums_BK.contiguous(), best.indices
            count = min(count * 16, size)
