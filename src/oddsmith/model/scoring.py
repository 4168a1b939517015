"""Score preference pairs with a model: log-probabilities of both answers and their log-odds, without gradients.

    log_odds = log p/(1-p) of the chosen answer - log p/(1-p) of the rejected one

where p is exp of the mean log-probability of an answer's tokens. Above 0 the model prefers the chosen answer.
Source: the odds ratio of ORPO, arXiv 2403.07691, Eq. 4.

Shape suffixes: B pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from ..batching.collate import PaddedTensors, PairCollator
from ..data.tokens.tokenized import TokenizedPair
from ..loss import log_odds
from .logprobs.padded import pair_logps


class PairScore(NamedTuple):
    """One pair under a model; ``logp_chosen`` and ``logp_rejected`` are means over an answer's tokens, in nats."""

    row: int
    log_odds: float
    logp_chosen: float
    logp_rejected: float


@torch.no_grad()
def score_pairs(
    model: PreTrainedModel, pairs: Sequence[tuple[int, TokenizedPair]], *, batch_size: int
) -> Iterator[list[PairScore]]:
    """Yield the scores of pairs batch by batch, the longest first: a batch that does not fit into memory fails at once.

    ``model`` is in evaluation mode, ``pairs`` are row numbers with tokens. Scores are NaN or infinite where the model's
    log-probabilities are.
    """
    is_encoder_decoder = bool(model.config.is_encoder_decoder)
    pad_token_id = 0  # any token will do: masks come from lengths
    collate = PaddedTensors(PairCollator(pad_token_id), is_encoder_decoder)
    longest_first = sorted(pairs, key=lambda item: -item[1].longest_tokens)
    for start in range(0, len(longest_first), batch_size):
        chunk = longest_first[start : start + batch_size]
        batch = collate([pair.to_row(row) for row, pair in chunk])
        logps = pair_logps(
            model,
            {name: tensor.to(model.device) for name, tensor in batch.items()},
            pad_token_id=pad_token_id,
            is_encoder_decoder=is_encoder_decoder,
        )
        chosen_B, rejected_B = logps.logp_chosen_B.cpu(), logps.logp_rejected_B.cpu()
        odds_B = log_odds(chosen_B) - log_odds(rejected_B)
        values = zip(odds_B.tolist(), chosen_B.tolist(), rejected_B.tolist(), strict=True)
        yield [PairScore(row, *value) for (row, _), value in zip(chunk, values, strict=True)]
