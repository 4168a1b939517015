"""Judge probes: the one place where it is stated what is better, and what is noise.

    cost of a pair    = -log sigmoid(log_odds) - logp_w            nats, lower is better
    cost of a probe   = its mean over the held-out pairs, after the probe's last step
    gain of a probe   = mean over pairs of (cost under the recipe's own settings - cost under the probe's)

``log_odds`` and ``logp_w`` are those of ``semantics``: of the answers' tokens, means over a sequence. The first term
falls as the model comes to prefer the chosen answer, the second (the NLL of the chosen answer, a token) as it comes to
write it. That is ORPO's loss at beta 1 on the answer alone: a fixed yardstick, because a probe with another beta, or
with another ``nll_on``, minimises another loss. The log-odds alone would not do: they grow without bound where a model
forgets both answers, the rejected one faster.

A probe that ``oddsmith diagnose`` ends with the verdict "act" loses, whatever its cost.

All probes see the same pairs in the same order from the same seed, so gains are means of paired differences. Their
interval is Student's t over the pairs, and of the probes compared all hold together with 95% (Bonferroni): of many
probes one looks good by chance. It knows nothing of the noise of a training, which is why a winner is trained once more
with another seed, beside the recipe's own settings, and has to win again.

Shape suffixes: P held-out pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from ..diagnose.findings import Verdict
from .results import Result, State

CONFIDENCE = 0.95  # of all intervals of a search together
FEWEST_PAIRS = 6  # that have an interval: with fewer, quantiles of many comparisons would be too small


class Interval(NamedTuple):
    """A mean with its confidence interval, in nats."""

    mean: float
    low: float
    high: float

    @property
    def is_above_zero(self) -> bool:
        """Return whether all of it lies above 0."""
        return self.low > 0

    @property
    def is_below_zero(self) -> bool:
        """Return whether all of it lies below 0."""
        return self.high < 0


def pair_costs(log_odds_P: Sequence[float], logp_chosen_P: Sequence[float]) -> np.ndarray:
    """Return the cost of each pair, as the module's docstring defines it; infinite where a figure is not finite.

    Args:
        log_odds_P: Log-odds of each pair.
        logp_chosen_P: Mean log-probability of the tokens of each chosen answer, in nats.

    Returns:
        [P], nats.
    """
    with np.errstate(invalid="ignore"):  # NaN
        costs_P = np.logaddexp(0.0, -np.asarray(log_odds_P, dtype=float)) - np.asarray(logp_chosen_P, dtype=float)
    return np.where(np.isfinite(costs_P), costs_P, np.inf)


def mean_cost(log_odds_P: Sequence[float], logp_chosen_P: Sequence[float]) -> float:
    """Return the cost of a probe; infinite where a pair has none, and where there is no pair."""
    costs_P = pair_costs(log_odds_P, logp_chosen_P)
    return float(costs_P.mean()) if len(costs_P) else math.inf


def cost_of(result: Result) -> float:
    """Return the cost of a probe's last evaluation; infinite without one."""
    return mean_cost(result.log_odds, result.logp_chosen)


def student_t(share: float, degrees: int) -> float:
    """Return the quantile of Student's t distribution, to 1% from 5 degrees of freedom on up to a share of 0.9995.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5 (the expansion in 1/degrees).
    """
    z = NormalDist().inv_cdf(share)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / degrees**power for power, term in enumerate(terms, 1))


def paired_interval(differences_P: np.ndarray, comparisons: int = 1) -> Interval:
    """Return the mean of paired differences with its interval.

    Args:
        differences_P: [P], a difference for each pair.
        comparisons: How many intervals are to hold together with ``CONFIDENCE``.

    Returns:
        The interval; unbounded with fewer than ``FEWEST_PAIRS``, or where a difference is not finite.
    """
    if len(differences_P) < FEWEST_PAIRS or not np.isfinite(differences_P).all():
        mean = float(differences_P.mean()) if len(differences_P) else math.nan
        return Interval(mean, -math.inf, math.inf)
    mean, pairs = float(differences_P.mean()), len(differences_P)
    share = 1 - (1 - CONFIDENCE) / 2 / max(comparisons, 1)
    half = student_t(share, pairs - 1) * float(differences_P.std(ddof=1)) / math.sqrt(pairs)
    return Interval(mean, mean - half, mean + half)


def gain(result: Result, own: Result, comparisons: int = 1) -> Interval | None:
    """Return by how much a probe is better than the recipe's own settings on the same pairs; ``None`` without pairs."""
    if not result.log_odds or len(result.log_odds) != len(own.log_odds):
        return None
    costs = [pair_costs(one.log_odds, one.logp_chosen) for one in (own, result)]
    with np.errstate(invalid="ignore"):  # infinity less infinity
        return paired_interval(costs[0] - costs[1], comparisons)


def is_sound(result: Result) -> bool:
    """Return whether a probe can win: trained to its end, with finite figures, and not diagnosed with "act"."""
    return result.state is State.FINISHED and result.verdict is not Verdict.ACT and math.isfinite(cost_of(result))


class Outcome(StrEnum):
    """How a search ended."""

    BETTER = "better"  # a probe is better than the recipe's own settings, on another seed too
    NOISE = "noise"  # one looks better, and the difference may be chance
    OWN = "own"  # the recipe's own settings had the lowest cost
    ONLY = "only"  # the recipe's own settings cannot win, and a probe can
    NONE = "none"  # no probe can win


@dataclass(frozen=True)
class Decision:
    """The result of a search.

    Args:
        outcome: How it ended.
        winner: The probe whose settings are to be used; that of the recipe's own settings where nothing is better.
        best: The sound probe with the lowest cost.
        gain: Of ``best``, over the recipe's own settings.
        again: The same, on another seed; ``None`` where it was not trained again.
    """

    outcome: Outcome
    winner: Result | None
    best: Result | None
    gain: Interval | None = None
    again: Interval | None = None


def best_of(results: Sequence[Result]) -> Result | None:
    """Return the sound probe with the lowest cost, the first of equals."""
    return min(filter(is_sound, results), key=cost_of, default=None)


def decide(results: Sequence[Result], repeated: Sequence[Result] = ()) -> Decision:
    """Decide which settings are to be used.

    Args:
        results: The probes of the search; the first has the recipe's own settings.
        repeated: The recipe's own settings and those of the best probe, trained once more with another seed; empty
            where that was not done.

    Returns:
        The decision: where the difference may be chance the recipe's own settings win.
    """
    own, best = results[0], best_of(results)
    if best is None:
        return Decision(Outcome.NONE, None, None)
    if best is own:
        return Decision(Outcome.OWN, own, own)
    found = gain(best, own, comparisons_of(results))
    if not is_sound(own):
        return Decision(Outcome.ONLY, best, best, found)
    if found is None or not found.is_above_zero:
        return Decision(Outcome.NOISE, own, best, found)
    if len(repeated) < 2:
        return Decision(Outcome.BETTER, best, best, found)
    again = gain(repeated[1], repeated[0])
    if is_sound(repeated[1]) and (not is_sound(repeated[0]) or (again is not None and again.is_above_zero)):
        return Decision(Outcome.BETTER, best, best, found, again)
    return Decision(Outcome.NOISE, own, best, found, again)


def comparisons_of(results: Sequence[Result]) -> int:
    """Return how many probes of a search are compared with the recipe's own settings."""
    return max(1, sum(result.state is State.FINISHED for result in results[1:]))
