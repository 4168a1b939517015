"""What a rule says: a verdict, how it knows, what that means, and what to change."""

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
        """0 for healthy, 2 for act."""
        return list(Verdict).index(self)


@dataclass(frozen=True)
class Finding:
    """One finding.

    Args:
        rule: Name of the rule.
        verdict: How bad it is.
        metric: The metric that shows it, under its name in ``docs/metrics.md``; held-out ones begin with ``eval_``.
        step: The optimizer step from which it shows; ``None`` where it is about the whole run.
        evidence: How much, compared with what.
        meaning: What that says about the model.
        change: What to do, with a number where there is one; empty where all is well.
    """

    rule: str
    verdict: Verdict
    metric: str
    step: int | None
    evidence: str
    meaning: str
    change: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For ``--json`` and the diary."""
        return {**asdict(self), "verdict": str(self.verdict)}


def overall(findings: Iterable[Finding]) -> Verdict:
    """The worst verdict; healthy where nothing was found."""
    return max((finding.verdict for finding in findings), key=lambda verdict: verdict.severity, default=Verdict.HEALTHY)
