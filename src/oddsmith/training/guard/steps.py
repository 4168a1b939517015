"""Before the optimizer makes a step: are its numbers finite, and like those of the steps before, on every process?

``judge.StepGuard`` decides; here is what it needs to know, from all processes by one sum, and what its decisions mean
in transformers' loop. A step that is skipped leaves weights, optimizer and learning rate as they were, and enters no
logged average; the data goes on.

DeepSpeed makes its step within the backward pass, where nothing can be skipped any more: there the run stops instead.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from math import nan
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from ...config import ORPOConfig
from ...errors import NonFiniteError
from ...model.logprobs.padded import PairLogps
from ...system.run_folder import Event, append_event
from ..going_back import GoingBack
from ..meter import TrainingMeter
from .judge import Decision, StepGuard
from .pairs import Cause, WatchedPairs, rows_behind, rows_in_words
from .weights import unsound_weights, weights_in_words

logger = logging.getLogger(__name__)

MOST_ROWS = 32  # of a step that the diary names; those that weigh most in its loss
MOST_LINES = 20  # about skipped steps and spikes; the diary has them all
CURE = "look at these rows, lower learning_rate, or compute in bf16 or float32 instead of fp16"


class GuardedSteps(GoingBack):
    """The part of ``ORPOTrainer`` between the gradient of a step and the optimizer.

    Attributes of the whole that it uses: ``_meter``, and ``_carried`` (what a process carries over a resume).
    """

    args: ORPOConfig
    _meter: TrainingMeter
    _carried: dict[str, Any]
    _guard: StepGuard
    _watched: list[WatchedPairs]
    _step_losses: list[Tensor]
    _lines_told = 0
    _never_sound: frozenset[str] = frozenset()
    _before: tuple[Tensor, Any]  # of the step: transformers' sum of losses, and the meter's state

    def __init__(self, *args: Any, **kwargs: Any):
        self._watched, self._step_losses = [], []
        super().__init__(*args, **kwargs)
        self.add_callback(GarbageFilter(self))

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train, as transformers does; the guard begins anew."""
        self._guard = StepGuard(self.args.max_skipped_steps, self.args.loss_spikes)
        self._carried["guard"] = self._guard
        self._lines_told, self._never_sound = 0, frozenset()
        return super().train(*args, **kwargs)

    def _watch(self, logps: PairLogps, batch: Mapping[str, Tensor]) -> None:
        """Remember the pairs of a micro-batch; looking at the answer now would stop a GPU."""
        self._watched.append(WatchedPairs.of(logps, batch))

    def _open_step(self) -> None:
        """Remember what is taken back if the step is skipped."""
        self._watched, self._step_losses = [], []
        self._before = self._tr_loss.clone(), self._meter.state()

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | float | None = None) -> Tensor | float | None:
        """Judge the step: transformers calls this last before the optimizer.

        Args:
            model: The model.
            grad_norm: What clipping returned, if there is any.

        Returns:
            The norm of the gradient over all processes; ``None`` where the log line shall have none.
        """
        norm = super()._get_grad_norm(model, grad_norm)
        loss, cause = self._look_at(norm)
        is_calibration = cause is Cause.GRADIENT and self._scaler_is_calibrating()
        decision = self._guard.judge(loss, finite=cause is None or is_calibration)
        if self._is_stepped_already and decision is not Decision.TRAIN:
            decision = Decision.STOP if cause else Decision.WARN
        is_skipped = decision in (Decision.SKIP, Decision.ROLL_BACK)
        what = ""
        if decision is not Decision.TRAIN:
            what = self._report(cause or Cause.SPIKE, loss, stops=decision is Decision.STOP, is_skipped=is_skipped)
        self.optimizer._is_overflow = is_skipped  # if so, the learning rate does not move
        if is_skipped:
            self._skip()
        if decision is Decision.ROLL_BACK:
            self._roll_back(what)
        return None if is_skipped or is_calibration else norm

    @property
    def _is_stepped_already(self) -> bool:
        return self.accelerator.distributed_type == DistributedType.DEEPSPEED

    def _look_at(self, norm: Tensor | float | None) -> tuple[float, Cause | None]:
        """The loss of the step over all processes, and what is not finite in it on any of them."""
        device = self.args.device
        norm = torch.as_tensor(0.0 if norm is None else norm, device=device)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # sharded by FSDP2
        losses = torch.stack(self._step_losses).sum() if self._step_losses else torch.zeros((), device=device)
        finite = torch.cat([losses.isfinite()[None], *(pairs.finite_B for pairs in self._watched)]).all()
        facts = torch.stack([losses.float(), (~finite).float(), (~norm.isfinite()).float()])
        loss, not_finite, bad_gradients = self.accelerator.reduce(facts, reduction="sum").tolist()
        if not_finite:
            return nan, Cause.LOG_PROBABILITIES
        # DeepSpeed searches fp16's loss scale by itself.
        is_bad = bad_gradients > 0 and not self._is_stepped_already
        return loss / self.accelerator.num_processes, Cause.GRADIENT if is_bad else None

    def _scaler_is_calibrating(self) -> bool:
        """Whether fp16's loss scale is being searched: it starts at 2^16 and is halved at each gradient that overflows.

        At 1 nothing is scaled any more, and what overflows then is the gradient itself.
        """
        scaler = self.accelerator.scaler
        return scaler is not None and scaler.get_scale() > 1

    def _skip(self) -> None:
        """Keep the optimizer from this step, the learning rate from moving, and the step out of every average."""
        self._tr_loss.copy_(self._before[0])
        self._meter.leave_out_step(self._before[1])
        self._globalstep_last_logged += 1
        if hasattr(self, "_initial_global_step"):  # newer transformers average the whole run over the steps since it
            self._initial_global_step += 1
        self.accelerator.gradient_state._set_sync_gradients(False)  # the optimizer's step() does nothing
        if self.accelerator.scaler is not None:  # it expects an update after each unscaling; its scale is not to blame
            self.accelerator.scaler.update(self.accelerator.scaler.get_scale())

    def _roll_back(self, what: str) -> None:
        """Go back to the last good checkpoint from before the steps that were skipped.

        Args:
            what: What is wrong, for the message.

        Raises:
            NonFiniteError: There is no such checkpoint.
        """
        step, in_a_row = self.state.global_step + 1, self.args.max_skipped_steps
        folder = self._go_back(step - in_a_row, is_sound=lambda: not self._bad_weights())
        if folder is None:
            raise NonFiniteError(
                f"step {step}: {what}, the last of {in_a_row} in a row, and there is no good checkpoint from before"
                f" them to go back to; {CURE}"
            )
        self._note(Event.ROLLED_BACK, step, f"went back to the weights of {folder.name}", checkpoint=folder.name)

    def _bad_weights(self) -> list[str]:
        """Names of the weights that have become NaN or infinite since the run began."""
        return [name for name in unsound_weights(self.model, self.accelerator) if name not in self._never_sound]

    # ---- Telling

    def _report(self, cause: Cause, loss: float, *, stops: bool, is_skipped: bool) -> str:
        """Write a step that was skipped, or a spike, into the diary and tell it, or stop the run by it; what it is."""
        rows = rows_behind(self._watched, cause, self.args.beta)
        what = self._in_words(cause, loss, rows)
        if stops:
            raise NonFiniteError(f"step {self.state.global_step + 1}: {what}{self._tried()}; {CURE}")
        self._note(
            Event.SKIPPED if is_skipped else Event.SPIKE,
            self.state.global_step + 1,
            f"{'skipped: ' if is_skipped else ''}{what}",
            cause=cause,
            loss=loss,
            rows=rows[:MOST_ROWS],
            num_rows=len(rows),
        )
        return what

    def _note(self, event: Event, step: int, line: str, **fields: Any) -> None:
        """Write an event, and tell it."""
        if not self.is_world_process_zero():
            return
        append_event(self.args.output_dir, event, step, **fields)
        self._lines_told += 1
        if self._lines_told <= MOST_LINES:
            last = "; more of this is only in events.jsonl" if self._lines_told == MOST_LINES else ""
            logger.warning(f"step {step}: {line}{last}")

    def _in_words(self, cause: Cause, loss: float, rows: Sequence[int]) -> str:
        if cause is Cause.LOG_PROBABILITIES:
            return f"log-probabilities are NaN or infinite for {rows_in_words(rows)}"
        if cause is Cause.GRADIENT:
            return f"the gradient of {rows_in_words(rows)} is NaN or infinite"
        usual = self._guard.usual()
        level = f", where {usual.mean:.3f} is usual (deviation {usual.deviation:.2g})" if usual else ""
        return f"a loss of {loss:.3f}{level}; most of it from {rows_in_words(rows)}"

    def _tried(self) -> str:
        if not self._guard.has_rolled_back:
            return ""
        steps = self.args.max_skipped_steps
        return f", the last of {steps} in a row, as before the run went back to its last good checkpoint"

    # ---- Evaluation

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate, and name the rows whose log-probabilities are no numbers: the metrics are then none either.

        Args:
            *args: Those of transformers.
            **kwargs: The same.

        Returns:
            What transformers makes of it.

        Raises:
            NonFiniteError: There are such rows, and nothing but the metrics was wanted; a run goes on without them.
        """
        self._watched = []
        output = super().evaluation_loop(*args, **kwargs)
        rows = rows_behind(self._watched, Cause.LOG_PROBABILITIES, self.args.beta)
        self._watched = []
        if not rows:
            return output
        what = self._in_words(Cause.LOG_PROBABILITIES, 0.0, rows)
        if self.train_dataset is None:
            raise NonFiniteError(f"{what}; look at these rows, and whether the weights of this model are numbers")
        line = f"evaluation without result: {what}"
        self._note(Event.NOT_FINITE, self.state.global_step, line, rows=rows[:MOST_ROWS], num_rows=len(rows))
        return output


class GarbageFilter(TrainerCallback):
    """Keeps garbage out of checkpoints and out of the result, and ``GuardedSteps`` informed of the loop.

    Args:
        trainer: Whose steps are guarded.
    """

    def __init__(self, trainer: GuardedSteps):
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Tell of weights that are no numbers from the beginning; the run cannot be judged by them."""
        if bad := self._trainer._bad_weights():
            self._tell(state, f"{weights_in_words(bad)} before the first step")
            self._trainer._never_sound = frozenset(bad)

    def on_step_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """A step begins."""
        self._trainer._open_step()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """No checkpoint of weights that are not finite, nor between steps that are skipped.

        Those are nothing new, and the last good one might have to go for them.
        """
        if not control.should_save:
            return
        if self._trainer._guard.not_finite_in_a_row > 0 and not control.should_training_stop:
            control.should_save = False
        elif bad := self._trainer._bad_weights():
            control.should_save = False
            self._tell(state, f"step {state.global_step}: {weights_in_words(bad)}: no checkpoint of them")

    on_epoch_end = on_step_end

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Stop the run by what its last step left, which no step after it tries."""
        if bad := self._trainer._bad_weights():
            raise NonFiniteError(
                f"step {state.global_step}: {weights_in_words(bad)} after the last step; go on from the last"
                " checkpoint, with a lower learning_rate or in bf16 or float32 instead of fp16"
            )

    def _tell(self, state: TrainerState, line: str) -> None:
        if state.is_world_process_zero:
            logger.warning(line)
