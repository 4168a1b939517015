"""Say how long the rest of a run takes: the terminal and the monitor count in the same way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .strict_json import number


@dataclass
class PaceOfRun:
    """The pace of a run since it began or was resumed; evaluations are left out of it.

    Args:
        steps: Optimizer steps of the whole run.
        first_step: Steps that were done at the beginning.
        began_s: The time then, by the clock that :meth:`seconds_left` is given.
    """

    steps: int
    first_step: int
    began_s: float
    evaluations_s: float = 0.0

    def add_evaluation(self, metrics: Mapping[str, Any]) -> None:
        """Leave an evaluation out, by the ``eval_runtime`` (or ``eval_NAME_runtime``) among its metrics, in seconds."""
        self.evaluations_s += sum(
            max(0.0, number(value) or 0.0) for name, value in metrics.items() if name.endswith("_runtime")
        )

    def seconds_left(self, step: int, now_s: float) -> float | None:
        """Return the seconds from ``now_s``, with ``step`` steps done, to the last step; ``None`` before the first."""
        done, seconds = step - self.first_step, now_s - self.began_s - self.evaluations_s
        if done <= 0 or seconds <= 0 or self.steps <= 0:
            return None
        return seconds / done * max(0, self.steps - step)
