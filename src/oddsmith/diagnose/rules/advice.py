"""Word what to change about settings, the same in all findings of a run.

A rule names the factor that it wants a setting changed by (``Finding.factors``), and its ``change`` has the setting's
name in braces. Where several rules want the same setting changed, the harm done decides: the smallest factor counts if
any is below 1, otherwise the largest. So no two findings of a run give a setting two values.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import inf

from ...usual import FULL, LORA, Rule, rule_for
from ..findings import Finding
from ..history import History

OF_WHAT = {True: "with an adapter (LoRA)", False: "for all weights"}
SIZE_UNKNOWN = 7e9  # parameters: most runs whose log does not tell are of 7B and 8B models
MAX_BETA_UNKNOWN = 0.5  # of them; it is usual for small ones


def agreed(findings: Iterable[Finding], history: History) -> list[Finding]:
    """Return the findings with their changes worded, each setting with one value."""
    findings = list(findings)
    factors: dict[str, list[float]] = {}
    for finding in findings:
        for setting, factor in finding.factors.items():
            factors.setdefault(setting, []).append(factor)
    words = {
        setting: _WORDED[setting](history, min(wanted) if min(wanted) < 1 else max(wanted))
        for setting, wanted in factors.items()
    }
    return [replace(finding, change=finding.change.format(**words), factors={}) for finding in findings]


def kinds_of_run(history: History) -> list[bool]:
    """Return whether an adapter is trained; both answers if the source does not say."""
    return [False, True] if history.trains_adapter is None else [history.trains_adapter]


def usual_range(history: History, trains_adapter: bool) -> tuple[float, float]:
    """Return the lowest and highest usual learning rate of a kind of run."""
    return _range(_rule("learning_rate", history, LORA if trains_adapter else FULL))


def _rule(setting: str, history: History, training: str = FULL) -> Rule:
    return rule_for(setting, parameters=_parameters(history) or SIZE_UNKNOWN, training=training)


def _parameters(history: History) -> float | None:
    parameters = history.setting("parameters")
    return parameters if parameters is not None and 0 < parameters < inf else None


def _range(rule: Rule) -> tuple[float, float]:
    return rule.usual or (rule.value, rule.value)


def in_words(history: History, end: int) -> str:
    """Word the lowest (0) or highest (1) usual learning rates: ``2e-05 for all weights, 0.0002 with an adapter``."""
    return ", ".join(f"{usual_range(history, kind)[end]:.3g} {OF_WHAT[kind]}" for kind in kinds_of_run(history))


def highest_learning_rate(history: History) -> float | None:
    """Return the top of the schedule: the setting, else the highest that was logged."""
    logged = history.get("learning_rate").finite()
    return history.setting("learning_rate") or (float(logged.values.max()) if len(logged) else None)


def may_rise(history: History, factor: float) -> bool:
    """Return whether a learning rate times a factor is still usual, or not known."""
    rate = highest_learning_rate(history)
    return rate is None or any(factor * rate <= usual_range(history, kind)[1] for kind in kinds_of_run(history))


def _learning_rate(history: History, factor: float) -> str:
    """Word a new learning rate, for both kinds of run if the source does not say which it is."""
    rate = highest_learning_rate(history)
    if not rate:
        return _times("learning_rate", None, factor)
    targets = {kind: _target(rate, factor, *usual_range(history, kind)) for kind in kinds_of_run(history)}
    shown = {kind: f"{target:.2g}" for kind, target in targets.items() if target != rate}
    if len(set(shown.values())) == 1 and len(shown) == len(targets):
        return f"learning_rate {rate:.3g} -> {next(iter(shown.values()))}"
    changes = ", ".join(f"{target} {OF_WHAT[kind]}" for kind, target in shown.items())
    return f"learning_rate {rate:.3g} -> {changes}"


def _target(rate: float, factor: float, lowest: float, highest: float) -> float:
    """Return a rate times a factor; where that is not usual yet, the middle of what is, and never above the highest."""
    usual, wanted = highest / 2, rate * factor
    if factor < 1:
        return usual if wanted > highest else wanted
    return usual if wanted < lowest else max(rate, min(wanted, highest))


def _beta(history: History, factor: float) -> str:
    """Word a new beta: one that is usual for the size of the model, if it is to fall from above that."""
    beta, rule = history.setting("beta"), _rule("beta", history)
    lowest, highest = _range(rule)
    most = highest if _parameters(history) else max(highest, MAX_BETA_UNKNOWN)
    if factor < 1 and beta is not None and beta > most:
        return f"beta {beta:.3g} -> {rule.value} ({lowest:g} to {highest:g} is usual {rule.condition})"
    return _times("beta", beta, factor)


def _times(name: str, value: float | None, factor: float) -> str:
    """Word a change of a setting: ``beta 0.1 -> 0.05``; without numbers if its value is not known."""
    if not value:
        return f"{name} to {factor:.2g} times what it is"
    changed = value * factor
    return f"{name} {value:.3g} -> {f'{changed:.0f}' if 10 <= abs(changed) < 1e6 else f'{changed:.2g}'}"


_WORDED = {"learning_rate": _learning_rate, "beta": _beta}
