"""The list of rules. A rule is a function from a history to one finding, or to none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..findings import Finding, Verdict
from ..history import History

Rule = Callable[[History], Finding | None]
# The evaluation set of this name holds what must be kept, and has nothing to do with the pairs.
ANCHOR = "anchor"
# The paper's: 0.1 (Mistral), 0.2 (Llama-2), 0.25 (Phi-2); what is above the highest by more is no fine adjustment.
USUAL_BETA, HIGHEST_BETA = 0.1, 0.5
RULES: dict[str, Rule] = {}


def rule(function: Rule) -> Rule:
    """Register a rule under its function's name, which its findings carry."""
    RULES[function.__name__] = function
    return function


def judge(history: History) -> list[Finding]:
    """What every rule says of a history, the worst first.

    Args:
        history: The history.

    Returns:
        The findings.
    """
    with np.errstate(all="ignore"):  # logs may hold 1e308, and what overflows there is compared, not told
        found = [finding for check in RULES.values() if (finding := check(history)) is not None]
    return sorted(found, key=lambda finding: -finding.verdict.severity)


def graded(amount: float, watch: float, act: float) -> Verdict | None:
    """The verdict of an amount against two thresholds; ``None`` below both."""
    return Verdict.ACT if amount >= act else Verdict.WATCH if amount >= watch else None


def times(name: str, value: float | None, factor: float) -> str:
    """``learning_rate 0.0002 -> 0.0001``; in words where the value is not known.

    Args:
        name: The setting.
        value: What it is.
        factor: What to multiply it by.

    Returns:
        The words.
    """
    if value:
        return f"{name} {value:.3g} -> {short(value * factor)}"
    return f"{name} to {factor:.2g} times what it is"


def short(value: float) -> str:
    """A number to two digits: ``0.05``, ``2e-05``, ``150``."""
    return f"{value:.0f}" if 10 <= abs(value) < 1e6 else f"{value:.2g}"


def softer_beta(history: History) -> str:
    """What to do about a beta that pushes too hard: the usual one where it is far above that, else half of it."""
    beta = history.setting("beta")
    if beta is not None and beta > HIGHEST_BETA:
        return f"beta {beta:.3g} -> {USUAL_BETA} (0.1 to 0.25 is usual)"
    return times("beta", beta, 0.5)


def highest_learning_rate(history: History) -> float | None:
    """The top of the schedule: what was set, else the highest that was logged."""
    given = history.setting("learning_rate")
    logged = history.get("learning_rate").finite()
    return given or (float(logged.values.max()) if len(logged) else None)


def held_out_key(held_out: str, metric: str) -> str:
    """Return the name under which an evaluation logs a metric: ``eval_nll_loss``, ``eval_anchor_nll_loss``."""
    return f"eval_{held_out}_{metric}" if held_out else f"eval_{metric}"
