"""Where this process is in its step, how long it computes before it waits for the others, and what it computes.

    waiting share of a process = sum over steps (longest time - its own time) / seconds of the steps

The time of a step begins where the last one ended, so the loading of batches is in it. It ends where the process begins
to wait for the gradients of the others: with DDP at the end of its own backward pass. FSDP and DeepSpeed let every
layer wait for all processes, so there it ends with the first forward pass, and only late batches are seen.

On a GPU the times are of events on its stream, which are read once the step has been waited for in any case.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import IntEnum
from math import fsum, nan
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_utils import has_length

from ..system.peaks import peak_operations
from ..system.run_folder import Event, append_event

Moment = float | torch.cuda.Event
AFTER_STEP = "logging, evaluating or saving"


class Stage(IntEnum):
    """What a process does in its turn; all processes do it in this order."""

    PREPARING = 0
    LOADING = 1
    COMPUTING = 2  # micro-batches but the last: other processes may have more of them, or fewer
    LAST = 3  # computing the last micro-batch
    EXCHANGING = 4
    OPTIMIZING = 5
    EVALUATING = 6


class Place(NamedTuple):
    """Where a process is; of two processes the one with the lower ``turn`` and ``stage`` is behind."""

    turn: int  # grows after each accumulated batch, step and evaluation
    stage: int
    step: int  # the optimizer step that is made, or was made last
    doing: str
    is_limited: bool  # whether no process takes long for it


class Pace(TrainerCallback):
    """Follow this process through the steps of a training.

    Args:
        is_sharded: Whether FSDP or DeepSpeed shards the weights.
    """

    def __init__(self, is_sharded: Callable[[], bool]):
        self._is_sharded = is_sharded
        self.place = Place(0, Stage.PREPARING, 0, "preparing", is_limited=False)
        self._is_alone, self._is_on_gpu = True, False
        self._is_warm = False  # a step was made: what it compiles and measures is done
        self._batches = 0  # of an evaluation, so far
        self._began: Moment = 0.0
        self._arrived: Moment | None = None
        self._own_s: list[float] = []  # of each step since the last reading
        self._operations = 0.0

    # ---- Places

    def enter(self, stage: Stage, doing: str, *, is_limited: bool = True) -> None:
        """Say what this process does from now on in its turn."""
        self.place = self.place._replace(stage=stage, doing=doing, is_limited=is_limited and self._is_warm)

    def _next_turn(self, doing: str, step: int) -> None:
        self.place = Place(self.place.turn + 1, Stage.PREPARING, step, doing, is_limited=False)

    def load_batches(self, step: int) -> None:
        """Begin to wait for the batches of a step."""
        self.enter(Stage.LOADING, "loading the batches")
        self.place = self.place._replace(step=step)

    def begin_micro_batch(self, number: int, last: int) -> None:
        """Begin the forward pass of a micro-batch."""
        self.enter(Stage.LAST if number == last else Stage.COMPUTING, f"computing micro-batch {number} of {last}")
        if self._arrived is None and self._is_sharded():
            self._arrived = self._now()

    def watch_backward(self, loss: Tensor) -> None:
        """Note the end of the backward pass of a loss: before DDP waits for the gradients of other processes."""
        if self._is_alone or self._is_sharded() or not loss.requires_grad:
            return
        # What is queued when the pass begins is called before that which DDP queues while it runs.
        engine = torch.autograd.Variable._execution_engine
        loss.register_hook(lambda _: engine.queue_callback(self._arrive))

    def _arrive(self) -> None:
        self.enter(Stage.EXCHANGING, "exchanging gradients")
        self._arrived = self._now()

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Begin with nothing known."""
        self._is_alone = args.world_size == 1
        self._is_on_gpu = args.device.type == "cuda" and not self._is_alone
        self._is_warm, self._own_s, self._operations = False, [], 0.0
        self._next_turn("preparing", state.global_step)
        self._begin_step()

    def on_pre_optimizer_step(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Enter the optimizer step."""
        self.enter(Stage.OPTIMIZING, "making the optimizer step")

    def on_substep_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Go on to the next of the batches whose gradients are added."""
        self.place = self.place._replace(turn=self.place.turn + 1, stage=Stage.COMPUTING)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Note how long the step took this process."""
        self._own_s.append(self._step_s())
        self._is_warm = True
        self._begin_step()
        self._next_turn(AFTER_STEP, state.global_step)

    def on_prediction_step(
        self, args: Any, state: TrainerState, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        """Count a batch of an evaluation; what comes after the last one may take long, as answers do."""
        self._batches += 1
        is_last = not has_length(eval_dataloader) or self._batches >= len(eval_dataloader)
        self.enter(Stage.EVALUATING, f"evaluating, after batch {self._batches}", is_limited=not is_last)

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Leave the time of an evaluation out of the next step."""
        self._batches = 0
        self._next_turn(AFTER_STEP, state.global_step)
        self._begin_step()

    def on_save(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Leave the time of a save out of the next step."""
        self._begin_step()

    def _begin_step(self) -> None:
        self._began, self._arrived = self._now(), None

    # ---- Times

    def _now(self) -> Moment:
        if not self._is_on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _step_s(self) -> float:
        """Return the seconds that this process took for itself; NaN where they are not known."""
        if self._arrived is None:
            return nan
        return _seconds(self._began, self._arrived)

    def add_operations(self, number: float) -> None:
        """Count floating-point operations that the model needs for an item."""
        self._operations += number

    def metrics(
        self,
        accelerator: Accelerator,
        args: TrainingArguments,
        state: TrainerState,
        seconds: float,
    ) -> dict[str, float]:
        """Return the metrics since the last log line, and write the event ``ranks``; all processes call it together.

        Args:
            accelerator: Of the run.
            args: Of the run.
            state: Of the run.
            seconds: What the steps since the last log line took.

        Returns:
            ``mfu`` and ``waiting_share``, where they are known.
        """
        operations, shares = self.read(seconds, lambda own: accelerator.gather(own.to(accelerator.device)))
        processes, peak = args.world_size, _peak_of_run(args)
        found: dict[str, float] = {}
        if peak is not None and seconds > 0:
            found["mfu"] = operations / (seconds * processes * peak)
        if shares is not None:
            found["waiting_share"] = fsum(shares) / processes
            if state.is_world_process_zero:
                rounded = [round(share, 4) for share in shares]
                append_event(str(args.output_dir), Event.RANKS, state.global_step, waiting_share=rounded)
        return found

    def read(self, seconds: float, gather: Callable[[Tensor], Tensor]) -> tuple[float, list[float] | None]:
        """Return what was seen since the last call; all processes call it together.

        Args:
            seconds: What the steps since then took.
            gather: Concatenates the tensors of all processes along their first dimension.

        Returns:
            The floating-point operations that the model needed, in all processes together; and the waiting share of
            each process, 0 to 1, ``None`` where it is not known or where there is one process.
        """
        own = torch.tensor([[self._operations, *self._own_s]], dtype=torch.float32)  # mps has no float64
        self._own_s, self._operations = [], 0.0
        of_all = gather(own).cpu().double()
        operations, own_RS = float(of_all[:, 0].sum()), of_all[:, 1:]
        if len(own_RS) == 1 or own_RS.numel() == 0 or not own_RS.isfinite().all() or seconds <= 0:
            return operations, None
        waiting_R = (own_RS.max(dim=0).values - own_RS).sum(dim=1) / seconds
        return operations, waiting_R.clamp(max=1.0).tolist()


def _peak_of_run(args: TrainingArguments) -> float | None:
    """Return the operations a second of a GPU of this run at best; ``None`` where they are not known.

    They are known for products in 16 bits.
    """
    if args.device.type != "cuda" or not (args.bf16 or args.fp16):
        return None
    return peak_operations(torch.cuda.get_device_name(args.device))


def _seconds(began: Moment, ended: Moment) -> float:
    """Return the seconds between two moments; NaN for events that a GPU has not reached, which are not waited for."""
    if isinstance(began, float) or isinstance(ended, float):
        return float(ended) - float(began)  # type: ignore[arg-type]
    return began.elapsed_time(ended) / 1000 if began.query() and ended.query() else nan
