"""Register rules, and judge a run by all of them. A rule maps a history to one finding or to none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..findings import Finding, Verdict
from ..history import History
from .advice import agreed

Rule = Callable[[History], Finding | None]
ANCHOR = "anchor"  # the evaluation set of this name holds text that has nothing to do with the pairs
RULES: dict[str, Rule] = {}
MAX_EXAMPLE = 100  # characters of a line that is quoted


def rule(function: Rule) -> Rule:
    """Register a rule under its function's name."""
    RULES[function.__name__] = function
    return function


def judge(history: History) -> list[Finding]:
    """Return the findings of all rules, the worst first."""
    with np.errstate(all="ignore"):  # logs may hold 1e308; an overflow is compared like any other value
        found = [(name, finding) for name, check in RULES.items() if (finding := check(history)) is not None]
    findings = agreed([replace(finding, rule=name) for name, finding in found], history)
    findings += _unknown(history, has_findings=bool(findings))
    return sorted(findings, key=lambda finding: -finding.verdict.severity)


def _unknown(history: History, has_findings: bool) -> list[Finding]:
    """Return findings about what keeps the rules from judging: lines that were not read, and too few that were."""
    if history.unread > max(history.log_lines, history.evaluations):
        return [
            Finding(
                Verdict.CANNOT_TELL,
                "loss",
                None,
                f"{history.unread} lines look as if they had metrics and were not understood, the first:"
                f" {history.unread_example[:MAX_EXAMPLE]!r}",
                "the rest of the source says too little of the run",
                "give the run folder, trainer_state.json, or the log as the trainer printed it",
                rule="not_read",
            )
        ]
    if has_findings:
        return []
    loss, odds = len(history.get("loss")), len(history.get("log_odds_chosen"))
    return [
        Finding(
            Verdict.CANNOT_TELL,
            "loss",
            None,
            f"{loss} values of the loss, {odds} of the log odds, {history.evaluations} evaluations: no rule found a"
            " sign of health or of harm in them",
            "this says nothing about the run, neither good nor bad",
            "give more of the run, or a source with nll_loss and log_odds_chosen: from about ten values on, a fall or a"
            " rise can be told from noise",
            rule="too_little",
        )
    ]


def graded(amount: float, watch: float, act: float) -> Verdict | None:
    """Return the verdict of an amount by two thresholds; ``None`` below both."""
    return Verdict.ACT if amount >= act else Verdict.WATCH if amount >= watch else None
