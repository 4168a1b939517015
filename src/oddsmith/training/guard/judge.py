"""What becomes of an optimizer step whose numbers are wrong: decided here, from two facts of each step. Needs no torch.

log-probabilities or gradient not finite    the step is skipped
so many of them in a row                    back to the last good checkpoint, once; the second time the run stops
a loss far above the last steps'            told; skipped where that was asked for
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from math import fsum, sqrt
from typing import Any, NamedTuple

# A loss is a spike where it lies so many standard deviations above the mean of so many steps.
SIGMAS = 6.0
WINDOW_STEPS = 128
# From fewer steps a standard deviation is a guess.
LEAST_STEPS = 32
# The deviation counts as at least this share of the mean: losses that are all alike have none.
LEAST_DEVIATION = 1e-3


class Decision(Enum):
    """What to do with a step."""

    TRAIN = "train"
    WARN = "warn"  # train, and tell of a spike
    SKIP = "skip"
    ROLL_BACK = "roll back"  # skip, and go back to the last good checkpoint
    STOP = "stop"


class Usual(NamedTuple):
    """Mean and standard deviation of the losses of the last steps."""

    mean: float
    deviation: float

    @property
    def highest(self) -> float:
        """The loss above which a step is a spike."""
        return self.mean + SIGMAS * self.deviation


class StepGuard:
    """Judges the steps of a run, one after the other. All processes of a run are told the same and decide alike.

    The spike test is the plain one: more than ``SIGMAS`` standard deviations above the mean of the last
    ``WINDOW_STEPS`` steps that were trained on. Both are moved by outliers, so a spike that was trained on is
    remembered as no higher than the threshold: one mad loss does not blind the guard for the rest of its window, and a
    level that stays becomes the usual one within some twenty steps.

    Attributes:
        has_rolled_back: Whether the run went back to a checkpoint already.
        not_finite_in_a_row: How many of the last steps were skipped because they were not finite.

    Args:
        max_skipped_steps: How many steps in a row may be skipped.
        loss_spikes: ``"warn"``, ``"skip"`` or ``"ignore"``. A spike that lasts longer than ``max_skipped_steps`` steps
            is no spike but another level, and is trained on.
    """

    def __init__(self, max_skipped_steps: int = 3, loss_spikes: str = "warn"):
        self._max_skipped_steps, self._loss_spikes = max_skipped_steps, loss_spikes
        self._losses: deque[float] = deque(maxlen=WINDOW_STEPS)
        self.has_rolled_back = False
        self._spike_steps = 0
        self.not_finite_in_a_row = 0

    def usual(self) -> Usual | None:
        """What the losses of the last steps were like; ``None`` after fewer than ``LEAST_STEPS``."""
        count = len(self._losses)
        if count < LEAST_STEPS:
            return None
        mean = fsum(self._losses) / count
        deviation = sqrt(fsum((loss - mean) ** 2 for loss in self._losses) / (count - 1))
        return Usual(mean, max(deviation, LEAST_DEVIATION * abs(mean)))

    def judge(self, loss: float, finite: bool) -> Decision:
        """Judge the next step.

        Args:
            loss: Its loss over all processes, nats.
            finite: Whether its log-probabilities and its gradient are numbers.

        Returns:
            What to do with it.
        """
        if finite:
            self.not_finite_in_a_row = 0
            return self._judge_loss(loss)
        self.not_finite_in_a_row += 1
        if self.not_finite_in_a_row < self._max_skipped_steps:
            return Decision.SKIP
        if self.has_rolled_back:
            return Decision.STOP
        self.has_rolled_back, self.not_finite_in_a_row = True, 0
        return Decision.ROLL_BACK

    def _judge_loss(self, loss: float) -> Decision:
        usual = self.usual() if self._loss_spikes != "ignore" else None
        if usual is None or loss <= usual.highest:
            self._spike_steps = 0
            self._losses.append(loss)
            return Decision.TRAIN
        self._spike_steps += 1
        trained = self._spike_steps - (self._max_skipped_steps if self._loss_spikes == "skip" else 0)
        if trained <= 0:
            return Decision.SKIP
        self._losses.append(usual.highest)
        return Decision.WARN if trained == 1 else Decision.TRAIN

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "losses": list(self._losses),
            "rolled_back": self.has_rolled_back,
            "spike_steps": self._spike_steps,
            "not_finite_in_a_row": self.not_finite_in_a_row,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`state`."""
        self._losses = deque(state["losses"], maxlen=WINDOW_STEPS)
        self.has_rolled_back = state["rolled_back"]
        self._spike_steps = state["spike_steps"]
        self.not_finite_in_a_row = state["not_finite_in_a_row"]
