"""What a model prefers before it is trained: its own log-odds of every pair. How much is there to learn, and where?

Log-odds above 0 say that the model prefers the chosen answer of a pair already, below 0 that it prefers the rejected
one. The pairs of the lowest log-odds surprise it most: what it has to learn, or rows whose sides are mixed up.

Shape suffixes: B pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from ..batching.collate import PaddedTensors, PairCollator
from ..data.checks.texts import PairTexts
from ..data.formats import to_pair
from ..data.row_tokenizer import token_row
from ..data.sources import FileRows, Rows, numbered_rows
from ..data.tokens.pair_tokenizer import PairTokenizer
from ..data.tokens.tokenized import TokenizedPair
from ..errors import DataError, NonFiniteError, RowError
from ..loss import log_odds, odds_ratio_loss
from .logprobs.padded import pair_logps

BATCH_PAIRS = 8
MOST_SURPRISING = 20
SHOWN_CHARACTERS = 200  # of each text of a surprising pair


class ScoredPair(NamedTuple):
    """One pair under a model.

    Args:
        row: Its number.
        log_odds: Log-odds of chosen against rejected.
        logp_chosen, logp_rejected: Mean log-probability of each answer's tokens, in nats.
    """

    row: int
    log_odds: float
    logp_chosen: float
    logp_rejected: float


@dataclass(frozen=True)
class SurprisingPair:
    """A pair that a model would have decided the other way round; texts are cut to ``SHOWN_CHARACTERS``."""

    row: int
    log_odds: float
    logp_chosen: float
    logp_rejected: float
    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Preference:
    """What a model prefers among some pairs.

    Args:
        pairs: How many were scored.
        accuracy: Share of them in which it prefers the chosen answer.
        log_odds_mean, log_odds_median: Of all pairs.
        or_loss: Mean of L_OR = -log sigmoid(log_odds): log 2 = 0.693 without any preference, 0 with nothing to learn.
        surprising: The pairs of the lowest log-odds, lowest first.
    """

    pairs: int
    accuracy: float
    log_odds_mean: float
    log_odds_median: float
    or_loss: float
    surprising: list[SurprisingPair]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def model_preference(
    model: PreTrainedModel,
    pair_tokenizer: PairTokenizer,
    rows: Rows | FileRows,
    *,
    total: int,
    left_out: Collection[int] = (),
    most_pairs: int = 1000,
    on_pairs: Callable[[int], object] = lambda count: None,
) -> Preference:
    """Score pairs with a model, and sum up what it prefers.

    Args:
        model: The model; it computes where it is, without gradients.
        pair_tokenizer: Makes the tokens as the training will.
        rows: The rows.
        total: How many rows there are.
        left_out: Numbers of rows that are not to be scored.
        most_pairs: How many pairs are scored at most, spread evenly over the rows.
        on_pairs: Called with the number of pairs scored since the last call.

    Returns:
        The preference.

    Raises:
        DataError: No pair can be scored.
        NonFiniteError: The model gives no finite log-probabilities.
    """
    wanted = _spread([row for row in range(total) if row not in left_out], most_pairs)
    tokens = _tokens_of(rows, wanted, pair_tokenizer)
    if not tokens:
        raise DataError("no pair is left that the model could score; see what the checks found")
    scored = _scored(model, pair_tokenizer, tokens, on_pairs)
    surprising = sorted(scored, key=lambda pair: pair.log_odds)[:MOST_SURPRISING]
    texts = {number: PairTexts.of(to_pair(row)) for number, row in _rows_at(rows, {pair.row for pair in surprising})}
    odds = [pair.log_odds for pair in scored]
    return Preference(
        pairs=len(scored),
        accuracy=fmean(pair.logp_chosen > pair.logp_rejected for pair in scored),
        log_odds_mean=fmean(odds),
        log_odds_median=median(odds),
        or_loss=fmean(
            odds_ratio_loss(
                torch.tensor([pair.logp_chosen for pair in scored]),
                torch.tensor([pair.logp_rejected for pair in scored]),
            ).tolist()
        ),
        surprising=[_with_texts(pair, texts[pair.row]) for pair in surprising],
    )


def _spread(rows: Sequence[int], most: int) -> set[int]:
    """At most so many of the rows, evenly spread."""
    if len(rows) <= most:
        return set(rows)
    return {rows[round(position * (len(rows) - 1) / max(1, most - 1))] for position in range(most)}


def _rows_at(rows: Rows | FileRows, wanted: Collection[int]) -> list[tuple[int, Any]]:
    return [(number, row) for number, row in numbered_rows(rows) if number in wanted]


def _tokens_of(
    rows: Rows | FileRows, wanted: Collection[int], pair_tokenizer: PairTokenizer
) -> list[tuple[int, TokenizedPair]]:
    tokens = []
    for number, row in _rows_at(rows, wanted):
        try:
            (outcome,) = pair_tokenizer.tokenize([to_pair(row)])
        except RowError:
            continue
        if isinstance(outcome, TokenizedPair):
            tokens.append((number, outcome))
    return tokens


@torch.no_grad()
def _scored(
    model: PreTrainedModel,
    pair_tokenizer: PairTokenizer,
    tokens: list[tuple[int, TokenizedPair]],
    on_pairs: Callable[[int], object],
) -> list[ScoredPair]:
    """The pairs under the model, longest first, so that what does not fit into memory fails at once."""
    is_encoder_decoder = pair_tokenizer.is_encoder_decoder
    pad_token_id = pair_tokenizer.tokenizer.pad_token_id or 0  # never read: masks come from lengths
    collate = PaddedTensors(PairCollator(pad_token_id), is_encoder_decoder)
    tokens = sorted(tokens, key=lambda item: -item[1].longest_tokens)
    model.eval()
    scored: list[ScoredPair] = []
    for start in range(0, len(tokens), BATCH_PAIRS):
        chunk = tokens[start : start + BATCH_PAIRS]
        batch = {
            name: tensor.to(model.device)
            for name, tensor in collate([token_row(number, pair) for number, pair in chunk]).items()
        }
        logps = pair_logps(model, batch, pad_token_id=pad_token_id, is_encoder_decoder=is_encoder_decoder)
        chosen_B, rejected_B = logps.logp_chosen_B.cpu(), logps.logp_rejected_B.cpu()
        if not bool((chosen_B.isfinite() & rejected_B.isfinite()).all()):
            numbers = ", ".join(str(number) for number, _ in chunk)
            raise NonFiniteError(f"the model gives no finite log-probabilities for the rows {numbers}")
        odds_B = log_odds(chosen_B) - log_odds(rejected_B)
        values = zip(odds_B.tolist(), chosen_B.tolist(), rejected_B.tolist(), strict=True)
        scored += [ScoredPair(number, *value) for (number, _), value in zip(chunk, values, strict=True)]
        on_pairs(len(chunk))
    return scored


def _with_texts(pair: ScoredPair, texts: PairTexts) -> SurprisingPair:
    prompt, chosen, rejected = (
        text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 4] + " ..."
        for text in (texts.question, texts.chosen, texts.rejected)
    )
    return SurprisingPair(*pair, prompt=prompt, chosen=chosen, rejected=rejected)
