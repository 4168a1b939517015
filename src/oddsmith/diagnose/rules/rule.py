"""Register rules, and word the advice that several of them give. A rule maps a history to one finding or to none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..findings import Finding, Verdict
from ..history import History

Rule = Callable[[History], Finding | None]
ANCHOR = "anchor"  # the evaluation set of this name holds text that has nothing to do with the pairs
# The paper uses 0.1 (Mistral), 0.2 (Llama-2) and 0.25 (Phi-2). Above MAX_BETA the advice is USUAL_BETA, not half.
USUAL_BETA, MAX_BETA = 0.1, 0.5
RULES: dict[str, Rule] = {}


def rule(function: Rule) -> Rule:
    """Register a rule under its function's name."""
    RULES[function.__name__] = function
    return function


def judge(history: History) -> list[Finding]:
    """Return the findings of all rules, the worst first."""
    with np.errstate(all="ignore"):  # logs may hold 1e308; an overflow is compared like any other value
        found = [(name, finding) for name, check in RULES.items() if (finding := check(history)) is not None]
    findings = [replace(finding, rule=name) for name, finding in found]
    return sorted(findings, key=lambda finding: -finding.verdict.severity)


def graded(amount: float, watch: float, act: float) -> Verdict | None:
    """Return the verdict of an amount by two thresholds; ``None`` below both."""
    return Verdict.ACT if amount >= act else Verdict.WATCH if amount >= watch else None


def held_out_key(held_out: str, metric: str) -> str:
    """Return the name under which an evaluation logs a metric: ``eval_nll_loss``, ``eval_anchor_nll_loss``."""
    return f"eval_{held_out}_{metric}" if held_out else f"eval_{metric}"


def times(name: str, value: float | None, factor: float) -> str:
    """Word a change of a setting: ``learning_rate 0.0002 -> 0.0001``; without numbers if its value is not known."""
    if not value:
        return f"{name} to {factor:.2g} times what it is"
    changed = value * factor
    return f"{name} {value:.3g} -> {f'{changed:.0f}' if 10 <= abs(changed) < 1e6 else f'{changed:.2g}'}"


def highest_learning_rate(history: History) -> float | None:
    """Return the top of the schedule: the setting, else the highest that was logged."""
    logged = history.get("learning_rate").finite()
    return history.setting("learning_rate") or (float(logged.values.max()) if len(logged) else None)


def rate_times(history: History, factor: float) -> str:
    """Word a change of the learning rate."""
    return times("learning_rate", highest_learning_rate(history), factor)


def softer_beta(history: History) -> str:
    """Word the change of a beta that is too high: to the usual one if it is far above that, else to half of it."""
    beta = history.setting("beta")
    if beta is not None and beta > MAX_BETA:
        return f"beta {beta:.3g} -> {USUAL_BETA} (0.1 to 0.25 is usual)"
    return times("beta", beta, 0.5)
