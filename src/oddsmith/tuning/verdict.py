"""Say in words how a search ended, and what of it is noise."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

from .objective import Interval, Outcome, cost_of, is_sound
from .results import Result, State
from .search import Found
from .space import shown

FEW_PAIRS = 50  # below, only large gains can be told from noise


def in_words(found: Found) -> list[str]:
    """Return the outcome in sentences: which settings to use, the evidence, and its limits."""
    decision, own = found.decision, found.results[0]
    several = "s" * (len(found.results) != 1)
    tried = f"{len(found.results)} probe{several} ({found.why_stopped})"
    best = decision.best
    if best is None:
        reasons = [f"{one.name}: {one.error or one.finding or one.verdict}" for one in found.lost[:3]]
        return [f"No probe can win, of {tried}: {'; '.join(reasons) or 'none was finished'}.", *_about(found)]
    own_settings, its_settings = settings_of(own.values), settings_of(best.values)
    by = f"better than the recipe's own {own_settings} by {_gain(decision.gain)}"
    again = "" if decision.again is None else f"; trained again with another seed, by {_gain(decision.again)}"
    lines = {
        Outcome.OWN: [f"Keep the recipe's own {own_settings}: the lowest cost of {tried}."],
        Outcome.ONLY: [
            f"Use {its_settings}, the best of {tried}: the recipe's own {own_settings} cannot win"
            f" ({own.error or own.finding or own.verdict})."
        ],
        Outcome.BETTER: [f"Use {its_settings}, the best of {tried}: {by}{again}."],
        Outcome.NOISE: [
            f"Keep the recipe's own {own_settings}: the difference to the best of {tried} is noise.",
            f"That was {its_settings}: {by}{again}, which may be chance.",
        ],
    }[decision.outcome]
    return [*lines, *_about(found)]


def settings_of(values: Mapping[str, Any]) -> str:
    """Return the settings of a probe: ``learning_rate 2e-05, beta 0.1``."""
    return ", ".join(f"{name} {shown(value)}" for name, value in values.items())


def interval_text(interval: Interval | None) -> str:
    """Return a gain with its interval: ``+0.120 [+0.051, +0.189]``."""
    if interval is None or not isfinite(interval.mean):
        return "-"
    bounds = f" [{interval.low:+.3f}, {interval.high:+.3f}]" if isfinite(interval.low) else ""
    return f"{interval.mean:+.3f}{bounds}"


def state_text(result: Result) -> str:
    """Return how a probe ended, in a word or two."""
    if result.state is State.FAILED:
        return "failed" if not result.finding else f"failed, {result.verdict}"
    if result.state is State.PRUNED:
        return f"stopped at {result.evaluations[-1].step}, {result.verdict}"
    return str(result.verdict) if is_sound(result) or isfinite(cost_of(result)) else "not finite"


def _gain(interval: Interval | None) -> str:
    return f"{interval_text(interval)} nats"


def _about(found: Found) -> list[str]:
    """Return what limits the evidence."""
    own = found.results[0]
    pairs = max((len(result.log_odds) for result in found.results), default=0)
    few = "; with so few, small gains cannot be told from noise" if pairs < FEW_PAIRS else ""
    lines = [f"Judged on {pairs} held-out pair{'s' * (pairs != 1)} ({own.held_out}){few}."]
    if own.steps < own.steps_of_run:
        lines.append(
            f"A probe has {own.steps} of the run's {own.steps_of_run:,} steps: what wins early need not win late, and"
            " short probes favour high learning rates."
        )
    return lines
