"""What a check is, and what it found: a verdict, how many rows and which, what that means and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..report import SHOWN_ROWS

Verdict = Literal["pass", "warn", "fail"]
SEVERITY: tuple[Verdict, ...] = ("pass", "warn", "fail")
NEVER = 2.0  # a share that no count reaches
ANY = 0.0  # one row is enough


@dataclass(frozen=True)
class Check:
    """A question that is asked of every row.

    Args:
        name: Short name, in the table and in JSON.
        warn_share: Share of the rows from which on it warns; ``ANY``: one row is enough.
        fail_share: Share of the rows from which on it fails; ``NEVER``: it only warns.
        meaning: What it does to the training.
        fix: What to do about it.
        drops: Whether a cleaned set leaves such rows out.
    """

    name: str
    warn_share: float
    fail_share: float
    meaning: str
    fix: str
    drops: bool = False

    def verdict(self, count: int, total: int) -> Verdict:
        """The verdict on ``count`` of ``total`` rows.

        Args:
            count: Rows at fault.
            total: All rows.

        Returns:
            Without a row at fault always ``"pass"``.
        """
        share = count / total if count else -1.0
        return "fail" if share >= self.fail_share else "warn" if share >= self.warn_share else "pass"


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Args:
        check: Its name.
        verdict: pass, warn or fail.
        count: Rows at fault.
        share: Their share of all rows.
        rows: The first few of them, counted from 0.
        found: What was found, in numbers; may be empty.
        meaning: What it does to the training.
        fix: What to do about it.
    """

    check: str
    verdict: Verdict
    count: int
    share: float
    rows: tuple[int, ...]
    found: str
    meaning: str
    fix: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {**vars(self), "rows": list(self.rows)}


def finding_of(check: Check, rows: Sequence[int], total: int, found: str = "") -> Finding:
    """The finding on a check whose faulty rows are known.

    Args:
        check: The check.
        rows: The rows at fault, in order.
        total: All rows.
        found: What was found, in numbers.

    Returns:
        The finding.
    """
    return Finding(
        check=check.name,
        verdict=check.verdict(len(rows), total),
        count=len(rows),
        share=len(rows) / max(1, total),
        rows=tuple(rows[:SHOWN_ROWS]),
        found=found,
        meaning=check.meaning,
        fix=check.fix,
    )


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The most severe of some verdicts; ``"pass"`` of none."""
    return max(verdicts, key=SEVERITY.index, default="pass")
