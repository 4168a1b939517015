"""Which pairs are behind numbers that are wrong: what is remembered of each micro-batch until its step is judged.

Shape suffixes: B pairs of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

import torch
from accelerate.utils import gather_object
from torch import Tensor

from ...loss import odds_ratio_loss
from ...model.logprobs.padded import PairLogps

MOST_ROWS_TOLD = 8


class Cause(StrEnum):
    """What is wrong with a step."""

    LOG_PROBABILITIES = "log-probabilities"
    GRADIENT = "gradient"
    SPIKE = "spike"


class WatchedPairs(NamedTuple):
    """The pairs of a micro-batch, detached and on their device: looking at them at once would stop a GPU.

    Args:
        finite_B: Whether all log-probabilities of a pair are numbers.
        row_B: Their rows in the dataset.
        nll_B: What the NLL of each adds to the loss of its step.
        logp_chosen_B, logp_rejected_B: Mean log-probabilities of the responses, nats.
        share_B: Their share in the step's mean over pairs; 0 for one that only fills a micro-batch.
    """

    finite_B: Tensor
    row_B: Tensor
    nll_B: Tensor
    logp_chosen_B: Tensor
    logp_rejected_B: Tensor
    share_B: Tensor

    @classmethod
    def of(cls, logps: PairLogps, batch: Mapping[str, Tensor]) -> WatchedPairs:
        """The pairs of a micro-batch."""
        nll_sum_B, chosen_B, rejected_B = (
            logp_B.detach() for logp_B in (logps.nll_sum_B, logps.logp_chosen_B, logps.logp_rejected_B)
        )
        finite_B = nll_sum_B.isfinite() & chosen_B.isfinite() & rejected_B.isfinite()
        weight_B = batch["weight"]
        nll_B = nll_sum_B * weight_B / batch["num_nll_tokens"]
        return cls(finite_B, batch["row"], nll_B, chosen_B, rejected_B, weight_B / batch["num_pairs"])

    def losses(self, beta: float) -> Tensor:
        """What each pair adds to the loss of its step, nats; ``inf`` where that is no number. [B]"""
        or_loss_B = odds_ratio_loss(self.logp_chosen_B, self.logp_rejected_B)
        return (self.nll_B + beta * or_loss_B * self.share_B).where(self.finite_B, torch.inf)


def rows_behind(watched: Sequence[WatchedPairs], cause: Cause, beta: float) -> list[int]:
    """The rows behind a step that is wrong, over all processes, which all have to call this.

    Args:
        watched: This process's micro-batches of the step.
        cause: For log-probabilities the rows that have none; for all else every row of the step.
        beta: Weight of the odds-ratio term.

    Returns:
        Rows of the dataset, those that add most to the loss first.
    """
    mine: list[tuple[float, int]] = []
    for pairs in watched:
        is_meant_B = ~pairs.finite_B if cause is Cause.LOG_PROBABILITIES else pairs.share_B > 0
        mine += zip(pairs.losses(beta)[is_meant_B].tolist(), pairs.row_B[is_meant_B].tolist(), strict=True)
    everybodys = sorted(gather_object(mine), key=lambda pair: (-pair[0], pair[1]))
    return list(dict.fromkeys(row for _, row in everybodys))


def rows_in_words(rows: Sequence[int]) -> str:
    """``dataset rows 5, 7 and 30 more``."""
    named = ", ".join(map(str, rows[:MOST_ROWS_TOLD]))
    more = f" and {len(rows) - MOST_ROWS_TOLD} more" if len(rows) > MOST_ROWS_TOLD else ""
    return f"dataset {'row' if len(rows) == 1 else 'rows'} {named}{more}"
