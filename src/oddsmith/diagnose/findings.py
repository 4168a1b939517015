"""Define the result of a rule: a verdict, the evidence, what it means, and what to change."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """How bad it is; ordered from fine to bad."""

    HEALTHY = "healthy"
    WATCH = "watch"
    ACT = "act"

    @property
    def severity(self) -> int:
        """Return 0 for healthy, 1 for watch, 2 for act."""
        return list(Verdict).index(self)


@dataclass(frozen=True)
class Finding:
    """One finding."""

    verdict: Verdict
    metric: str  # the metric that shows it, by its name in metrics.py; behind eval_ if it is held-out
    step: int | None  # the first optimizer step that shows it; None for the whole run
    evidence: str  # values, and what they are compared with
    meaning: str  # what that says about the model
    change: str = ""  # what to do, with a number if there is one; empty for healthy findings
    rule: str = ""  # name of the rule; rules.judge fills it in

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values, for ``--json`` and the event log."""
        return {"rule": self.rule, **asdict(self), "verdict": str(self.verdict)}


def overall(findings: Iterable[Finding]) -> Verdict:
    """Return the worst verdict; healthy without findings."""
    return max((finding.verdict for finding in findings), key=lambda verdict: verdict.severity, default=Verdict.HEALTHY)
