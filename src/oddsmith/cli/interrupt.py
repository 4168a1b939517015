"""Ctrl-C: the first ends the run after the current step, with a checkpoint; the second ends it at once."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .console import say


class StopOnRequest(TrainerCallback):
    """Listens for SIGINT while it is entered, and stops the training it is a callback of.

    The processes of a distributed run may hear the signal in different steps, so they agree after each step.
    """

    def __init__(self) -> None:
        self.requested = False
        self.stopped = False
        self._before: Any = None

    def __enter__(self) -> StopOnRequest:
        self._before = signal.signal(signal.SIGINT, self._hear)
        return self

    def __exit__(self, *exception: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        say("stopping after this step, with a checkpoint; Ctrl-C again ends at once", "yellow")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if self._agreed(args):
            self.stopped = True
            control.should_training_stop = control.should_save = True
            control.should_evaluate = False
        return control

    def _agreed(self, args: TrainingArguments) -> bool:
        """Whether any process was asked to stop."""
        if args.world_size == 1 or not torch.distributed.is_initialized():
            return self.requested
        asked = torch.tensor(float(self.requested), device=args.device)
        torch.distributed.all_reduce(asked, op=torch.distributed.ReduceOp.MAX)
        return bool(asked.item())
