"""What a loss of one's own is given and returns: the tokens of some pairs, and a loss of each pair.

A row is a pair; beyond its last token it is filled up (. below), with ``IGNORED`` as id and 0 as log-probability. The
layout is the same on both paths:

    ids_BL   p q r e . .     logp_BL  -1.2 -0.3 -2.0 -0.1 0 0     where(keep_BL)   p . r e . .

Shape suffixes: B pairs of a micro-batch, L tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor

from ...batching.collate import IGNORED


class Tokens(NamedTuple):
    """Some tokens of each pair, and the log-probability of each.

    Args:
        ids_BL: Token ids, int64; ``IGNORED`` (-100) where there is none.
        logp_BL: log p(token | the tokens before it), nats, float32 or better, differentiable; 0 where there is none.
    """

    ids_BL: Tensor
    logp_BL: Tensor

    @property
    def count_B(self) -> Tensor:
        """Number of tokens of each pair, int64."""
        return (self.ids_BL != IGNORED).sum(-1)

    @property
    def sum_B(self) -> Tensor:
        """Sum of the log-probabilities of each pair's tokens."""
        return self.logp_BL.sum(-1)

    @property
    def mean_B(self) -> Tensor:
        """Mean log-probability of each pair's tokens; NaN for a pair without any."""
        return self.sum_B / self.count_B

    def where(self, keep_BL: Tensor) -> Tokens:
        """Return the tokens where a mask, bool [B, L], is true; the others get no gradient."""
        return Tokens(self.ids_BL.where(keep_BL, IGNORED), self.logp_BL.where(keep_BL, 0.0))


class PairTokens(NamedTuple):
    """The pairs of a micro-batch, as ``ORPOTrainer.pair_losses`` gets them.

    Args:
        chosen: The tokens of the chosen responses.
        rejected: The tokens of the rejected responses.
        nll: The NLL targets: those of the chosen sequences, the prompt's among them, or with ``nll_on="response"``
            those of the chosen responses.
        beta: Weight of the odds-ratio term in this step.
        row_B: Numbers of the rows in the dataset that is trained or evaluated on, int64; ``None`` for batches of a
            loader that is not ours.
    """

    chosen: Tokens
    rejected: Tokens
    nll: Tokens
    beta: float = 0.0
    row_B: Tensor | None = None


class PairLosses(NamedTuple):
    """The losses of some pairs, as ``ORPOTrainer.pair_losses`` returns them.

        loss of a step = NLL + (sum over its N pairs of loss_B) / N        NLL = -(sum of logp) / (number of tokens)

    So it does not depend on how the step is split over micro-batches, accumulation steps and processes. An evaluation
    averages the same way over its set.

    Args:
        loss_B: The loss of each pair in place of ``beta * L_OR``, [B], not reduced.
        nll: The tokens whose NLL is learned, if not all of ``PairTokens.nll``: these, cut by ``where``. Which ones are
            kept must not depend on their log-probabilities, because those of the whole step are counted before it.
        metrics: Name -> a value for each pair, [B]: logged as its mean over the pairs. One with a name of ours takes
            the place of ours.
    """

    loss_B: Tensor
    nll: Tokens | None = None
    metrics: Mapping[str, Tensor] = MappingProxyType({})
