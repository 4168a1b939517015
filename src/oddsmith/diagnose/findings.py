"""Define the result of a rule: a verdict, the evidence, what it means, and what to change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """How bad it is; ordered from fine to bad."""

    HEALTHY = "healthy"
    CANNOT_TELL = "cannot tell"
    WATCH = "watch"
    ACT = "act"

    @property
    def severity(self) -> int:
        """Return its place in the order, from 0."""
        return list(Verdict).index(self)

    @property
    def asks_for_a_look(self) -> bool:
        """Return whether something was found that is not as it should be."""
        return self.severity >= Verdict.WATCH.severity


@dataclass(frozen=True)
class Finding:
    """One finding."""

    verdict: Verdict
    metric: str  # the metric that shows it, by its name in metrics.py; behind eval_ if it is held-out
    step: int | None  # the first optimizer step that shows it; None for the whole run
    evidence: str  # values, and what they are compared with
    meaning: str  # what that says about the model
    change: str = ""  # what to do; settings in braces, until rules.judge words them; empty for healthy findings
    factors: Mapping[str, float] = field(default_factory=dict)  # wanted of settings; see rules/advice.py
    rule: str = ""  # name of the rule; rules.judge fills it in

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values, for ``--json`` and the event log."""
        values = {"rule": self.rule, **asdict(self), "verdict": str(self.verdict)}
        del values["factors"]
        return values


def overall(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the worst of the verdicts of a run's findings; without any, nobody can tell."""
    return max(verdicts, key=lambda verdict: verdict.severity, default=Verdict.CANNOT_TELL)
