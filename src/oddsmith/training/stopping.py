"""Stop a run on a signal or before a time limit: after the step, with a checkpoint to resume from."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..system.signals import STOP_SIGNALS, StopSignals

logger = logging.getLogger(__name__)

TIME_LIMIT = "the time limit"
# Processes agree on a reason by its index in this list.
REASONS = (*(number.name for number in STOP_SIGNALS), TIME_LIMIT)

# The share of a time limit that is kept free beside the longest step and the longest save so far: for the first save,
# whose duration is not known yet, and for the process to end.
SPARE_SHARE = 0.02
MIN_SPARE_S = 1.0


class EvaluationGivenUp(Exception):
    """Ends an evaluation early; the resumed run makes up for it (see ``evaluation.py``)."""


class StopOnRequest(TrainerCallback):
    """Stop the training that has this callback on a signal, or before a time limit.

    The step is finished, an evaluation is given up after its batch (and made up for when the run resumes), and a
    checkpoint is written. A second signal ends the process at once, by ``KeyboardInterrupt``. ::

        with StopOnRequest(time_limit_s=3.5 * 3600) as stop:
            trainer = ORPOTrainer(..., callbacks=[stop])
            trainer.train()
        if stop.stopped:  # "SIGTERM", "SIGUSR1", "SIGINT", "SIGHUP" or "the time limit"
            sys.exit(75)

    The processes of a distributed run may receive a signal in different steps, so they agree after each step.

    Args:
        time_limit_s: Stop this many seconds after ``started_at``, early enough for one more step and a save as long as
            the longest so far. At least one step is made. ``None``: no limit.
        started_at: When the time starts to count, by ``time.monotonic()``; now by default.
        signals: An entered ``StopSignals`` to listen to, instead of one of its own.
        tell: Called with a line when a request is received, in another thread.
    """

    def __init__(
        self,
        time_limit_s: float | None = None,
        *,
        started_at: float | None = None,
        signals: StopSignals | None = None,
        tell: Callable[[str], None] = logger.warning,
    ):
        self.stopped: str | None = None  # why training was stopped
        self._time_limit_s = time_limit_s
        self._started_at = time.monotonic() if started_at is None else started_at
        self._signals, self._is_own = signals or StopSignals(), signals is None
        self._tell = tell
        self._stack = ExitStack()
        self._lap_at = 0.0
        self._longest_step_s = self._longest_save_s = 0.0
        self._longest_rest_s = 0.0  # of a save, that went on beside the training (async_save)
        self._is_training = False

    def __enter__(self) -> StopOnRequest:
        if self._is_own:
            self._signals = self._stack.enter_context(StopSignals())
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._is_training, self.stopped = True, None
        self._lap()
        self._signals.remember(self._tell_request)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._is_training = False

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._lap()

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._lap()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._longest_step_s = max(self._longest_step_s, self._lap())
        if self._agreed(args):
            control.should_training_stop = control.should_save = True

    def on_prediction_step(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._is_training:
            self._longest_step_s = max(self._longest_step_s, self._lap())
            if self._agreed(args):
                raise EvaluationGivenUp

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._longest_save_s = max(self._longest_save_s, self._lap())
        if self._agreed(args):
            control.should_training_stop = True

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Do nothing more at the end of an epoch that the stop has cut short."""
        if self.stopped and not float(state.epoch or 0.5).is_integer():
            control.should_log = control.should_evaluate = control.should_save = False

    def expect_rest_of_save(self, seconds: float) -> None:
        """Leave as much time for the part of the last save that goes on when the steps are done."""
        self._longest_rest_s = max(self._longest_rest_s, seconds)

    def _tell_request(self, signal_name: str) -> None:
        seen_s = self._longest_step_s + self._longest_save_s + self._longest_rest_s
        known = f" (some {seen_s:.0f} s, as far as seen)" if seen_s >= 1 else ""
        again = "Ctrl-C again" if signal_name == "SIGINT" else "a second signal"
        self._tell(f"{signal_name}: stopping after this step, with a checkpoint{known}; {again} ends at once")

    def _lap(self) -> float:
        """Return the seconds since the last call."""
        before, self._lap_at = self._lap_at, time.monotonic()
        return self._lap_at - before

    def _wanted(self) -> str | None:
        """Return why this process wants to stop."""
        if self._signals.heard is not None or self._time_limit_s is None:
            return self._signals.heard
        spare_s = max(SPARE_SHARE * self._time_limit_s, MIN_SPARE_S)
        needed_s = self._longest_step_s + self._longest_save_s + self._longest_rest_s + spare_s
        return TIME_LIMIT if self._lap_at - self._started_at + needed_s > self._time_limit_s else None

    def _agreed(self, args: TrainingArguments) -> bool:
        """Return whether any process wants to stop; all processes set the same reason."""
        wanted = self.stopped or self._wanted()
        if args.world_size > 1 and torch.distributed.is_initialized():
            code = torch.tensor(REASONS.index(wanted) if wanted else -1, device=args.device)
            torch.distributed.all_reduce(code, op=torch.distributed.ReduceOp.MAX)
            wanted = REASONS[int(code)] if code >= 0 else None
        self.stopped = wanted
        return wanted is not None
