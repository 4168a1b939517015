"""The ORPO loss in plain torch: start reading here.

For a pair (prompt x, chosen y_w, rejected y_l), with logp(y|x) the mean log-probability of the response's tokens:

    log_odds = [logp_w - log1mexp(logp_w)] - [logp_l - log1mexp(logp_l)]      log1mexp(a) = log(1 - e^a)
    L_OR     = -log sigmoid(log_odds)
    L        = NLL + beta * L_OR

Shape suffixes: B pairs.

Source: Hong, Lee, Thorne, "ORPO: Monolithic Preference Optimization without Reference Model", arXiv 2403.07691,
Eqs. 3 to 7. Appendix C has the gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Above this a response is as good as certain: 1/(1 - e^logp), the gradient's factor, would pass 1e6.
LOGP_MAX = -1e-6
_MINUS_LN2 = -0.6931471805599453


class ORPOLoss(NamedTuple):
    """The loss of some pairs of an optimizer step, and its two parts (scalars; ``loss = nll + beta * odds_ratio``)."""

    loss: Tensor
    nll: Tensor
    odds_ratio: Tensor


def log1mexp(x: Tensor) -> Tensor:
    """``log(1 - e^x)`` for x <= 0, with a gradient that is finite everywhere.

    The value is exact for every x < 0 and ``log1mexp(LOGP_MAX)`` from 0 upwards. The gradient is that of the function
    clamped at ``LOGP_MAX`` = -1e-6: zero above it, never larger than 1e6 in magnitude.

    Args:
        x: Log-probabilities, any shape, float32 or float64.

    Returns:
        The same shape and dtype as ``x``.

    Source: Mächler, "Accurately Computing log(1 - exp(-|a|))", 2012: log1p(-e^x) below -ln 2, log(-expm1(x)) above.
    """
    clamped = torch.where(x >= LOGP_MAX, LOGP_MAX, x)  # NaN stays NaN
    small = clamped < _MINUS_LN2
    # Both branches get a harmless argument where the other one is taken ("double where"): torch.where alone would give
    # a finite value and a NaN gradient, because 0 * inf reaches the input through the branch that is not taken.
    far = torch.log1p(-torch.exp(torch.where(small, clamped, -1.0)))
    near = torch.log(-torch.expm1(torch.where(small, -0.5, clamped)))
    value = torch.where(small, far, near)
    certain = (x > LOGP_MAX) & (x < 0)
    return torch.where(certain, torch.log(-torch.expm1(torch.where(certain, x, -0.5).detach())), value)


def log_odds(logp_B: Tensor) -> Tensor:
    """``log(p / (1 - p))`` of a response's mean log-probability, clamped at ``LOGP_MAX`` (Eq. 4)."""
    logp_B = torch.where(logp_B >= LOGP_MAX, LOGP_MAX, logp_B)  # NaN stays NaN
    return logp_B - log1mexp(logp_B)


def pair_log_odds(logp_chosen_B: Tensor, logp_rejected_B: Tensor) -> Tensor:
    """``log_odds(chosen) - log_odds(rejected)``: the log of the odds ratio of each pair, of either sign (Eq. 5). [B]"""
    return log_odds(logp_chosen_B) - log_odds(logp_rejected_B)


def odds_ratio_loss(logp_chosen_B: Tensor, logp_rejected_B: Tensor) -> Tensor:
    """``L_OR = -log sigmoid(log_odds(chosen) - log_odds(rejected))`` of each pair (Eq. 7).

    Args:
        logp_chosen_B: Mean log-probability (nats a token) of each chosen response, shape [B], float32 or float64.
        logp_rejected_B: The same of each rejected response.

    Returns:
        Shape [B], one value a pair, not reduced.
    """
    return -F.logsigmoid(pair_log_odds(logp_chosen_B, logp_rejected_B))


def orpo_loss(
    nll_sum: Tensor,
    logp_chosen_B: Tensor,
    logp_rejected_B: Tensor,
    *,
    beta: float,
    num_nll_tokens: float,
    num_pairs: float,
    weight_B: Tensor | None = None,
) -> ORPOLoss:
    """The share of some pairs in the loss of their optimizer step (Eq. 6).

        loss = nll_sum / num_nll_tokens + beta * sum over B of weight * L_OR / num_pairs

    Sums first, then divides by counts of the whole step: adding the shares of all micro-batches of all processes gives
    the loss of the step exactly, however its pairs were split.

    Args:
        nll_sum: Sum of the negative log-probabilities of the chosen sequences' target tokens, scalar, nats.
        logp_chosen_B: Mean log-probability of each chosen response, shape [B].
        logp_rejected_B: Mean log-probability of each rejected response, shape [B].
        beta: Weight of the odds-ratio term: the paper's lambda, ``alpha`` in the authors' code.
        num_nll_tokens: Number of NLL target tokens in the whole step.
        num_pairs: Number of pairs in the whole step.
        weight_B: 1 for a pair that counts, 0 for one that only fills a micro-batch; all count by default.

    Returns:
        ``ORPOLoss(loss, nll, odds_ratio)``, scalars in the dtype of the inputs.
    """
    or_loss_B = odds_ratio_loss(logp_chosen_B, logp_rejected_B)
    if weight_B is not None:
        or_loss_B = or_loss_B * weight_B
    nll = nll_sum / num_nll_tokens
    odds_ratio = or_loss_B.sum() / num_pairs
    return ORPOLoss(nll + beta * odds_ratio, nll, odds_ratio)
