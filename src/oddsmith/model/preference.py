"""Measure what a model prefers before it is trained: how much there is to learn, and from which pairs.

Pairs of low log-odds surprise the model: it has to learn them, or their two answers are swapped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any

import torch
from transformers import PreTrainedModel

from ..data.checks.texts import PairTexts
from ..data.formats import to_pair
from ..data.sources import FileRows, Rows, numbered_rows
from ..data.tokens.pair_tokenizer import PairTokenizer
from ..data.tokens.tokenized import TokenizedPair
from ..errors import DataError, NonFiniteError, RowError
from ..loss import odds_ratio_loss
from .scoring import PairScore, score_pairs

BATCH_PAIRS = 8
MOST_SURPRISING = 20
SHOWN_CHARACTERS = 200  # of each text of a surprising pair


@dataclass(frozen=True)
class SurprisingPair:
    """A pair of low log-odds with its texts, which are cut to ``SHOWN_CHARACTERS``."""

    row: int
    log_odds: float
    logp_chosen: float
    logp_rejected: float
    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Preference:
    """The preferences of a model among the scored pairs."""

    pairs: int
    accuracy: float  # share of pairs in which it prefers the chosen answer
    log_odds_mean: float
    log_odds_median: float
    or_loss: float  # mean of -log sigmoid(log_odds): log 2 = 0.693 without any preference, 0 with nothing to learn
    surprising: list[SurprisingPair]  # the pairs of the lowest log-odds, lowest first

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
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
    """Score pairs with a model and summarise what it prefers.

    At most ``most_pairs`` pairs are scored, spread evenly over the ``total`` rows without those of the numbers
    ``left_out``. ``pair_tokenizer`` makes the tokens as in training. ``on_pairs`` is called with the number of pairs
    scored since the last call. Raise ``DataError`` where no pair can be scored, and ``NonFiniteError`` where the model
    gives no finite log-probabilities.
    """
    sample = _spread([row for row in range(total) if row not in left_out], most_pairs)
    pairs = _tokenized(rows, sample, pair_tokenizer)
    if not pairs:
        raise DataError("no pair is left that the model could score; see what the checks found")
    model.eval()
    scores: list[PairScore] = []
    for batch in score_pairs(model, pairs, batch_size=BATCH_PAIRS):
        if not all(math.isfinite(logp) for score in batch for logp in (score.logp_chosen, score.logp_rejected)):
            numbers = ", ".join(str(score.row) for score in batch)
            raise NonFiniteError(f"the model gives no finite log-probabilities for the rows {numbers}")
        scores += batch
        on_pairs(len(batch))
    return _summary(scores, rows)


def _summary(scores: list[PairScore], rows: Rows | FileRows) -> Preference:
    surprising = sorted(scores, key=lambda score: score.log_odds)[:MOST_SURPRISING]
    texts = {number: PairTexts.of(to_pair(row)) for number, row in _rows_at(rows, {score.row for score in surprising})}
    odds = [score.log_odds for score in scores]
    or_losses = odds_ratio_loss(
        torch.tensor([score.logp_chosen for score in scores]), torch.tensor([score.logp_rejected for score in scores])
    )
    return Preference(
        pairs=len(scores),
        accuracy=fmean(score.logp_chosen > score.logp_rejected for score in scores),
        log_odds_mean=fmean(odds),
        log_odds_median=median(odds),
        or_loss=fmean(or_losses.tolist()),
        surprising=[
            SurprisingPair(*score, *(_cut(text) for text in (pair.question, pair.chosen, pair.rejected)))
            for score, pair in ((score, texts[score.row]) for score in surprising)
        ],
    )


def _spread(rows: Sequence[int], most: int) -> set[int]:
    """Take at most ``most`` of the rows, evenly spread."""
    if len(rows) <= most:
        return set(rows)
    return {rows[round(position * (len(rows) - 1) / max(1, most - 1))] for position in range(most)}


def _rows_at(rows: Rows | FileRows, wanted: Collection[int]) -> list[tuple[int, Any]]:
    return [(number, row) for number, row in numbered_rows(rows) if number in wanted]


def _tokenized(
    rows: Rows | FileRows, wanted: Collection[int], pair_tokenizer: PairTokenizer
) -> list[tuple[int, TokenizedPair]]:
    """Tokenize the wanted rows; invalid rows and pairs that training would drop are left out."""
    pairs = []
    for number, row in _rows_at(rows, wanted):
        try:
            (outcome,) = pair_tokenizer.tokenize([to_pair(row)])
        except RowError:
            continue
        if isinstance(outcome, TokenizedPair):
            pairs.append((number, outcome))
    return pairs


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 4] + " ..."
