"""Check every optimizer step before the optimizer makes it, and keep NaN, infinity and loss spikes out of the weights.

    log-probabilities or gradient not finite    the step is skipped
    max_skipped_steps of them in a row          rollback to the last good checkpoint, once; after that the run stops
    a loss far above that of the last steps     reported; skipped with loss_spikes="skip"

``StepJudge`` decides from two facts of a step (its loss, and whether it is finite). ``StepGuard`` collects the facts
from all processes with one sum, and does what was decided. A skipped step leaves weights, optimizer and learning rate
as they were, and enters no logged average; the data goes on.

DeepSpeed makes its optimizer step within the backward pass, where nothing can be skipped: there the run stops instead.

Shape suffixes: B pairs of a micro-batch.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from enum import Enum, StrEnum
from math import fsum, nan, sqrt
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState

from ..checkpoint.values import figure, flag, whole
from ..config import ORPOConfig
from ..errors import NonFiniteError
from ..loss import odds_ratio_loss
from ..model.logprobs.padded import PairLogps
from ..system.run_folder import Event, append_event
from ..system.shards import own_share
from ..system.words import counted
from .meter import TrainingMeter

logger = logging.getLogger(__name__)

# A loss is a spike if it lies this many standard deviations above the mean of the last WINDOW_STEPS steps.
SIGMAS = 6.0
WINDOW_STEPS = 128
MIN_STEPS = 32  # a standard deviation over fewer steps is a guess
MIN_DEVIATION = 1e-3  # the deviation counts as at least this share of the mean: equal losses have none
MAX_NAMED_ROWS = 8  # in a message
MAX_EVENT_ROWS = 32  # in an event; those that add most to the loss
MAX_LINES = 20  # about skipped steps and spikes; the event log has all of them
FIX = "look at these rows, lower learning_rate, or compute in bf16 or float32 instead of fp16"


class Decision(Enum):
    """What to do with a step."""

    TRAIN = "train"
    WARN = "warn"  # train, and report a spike
    SKIP = "skip"
    ROLL_BACK = "roll back"  # skip, and return to the last good checkpoint
    STOP = "stop"


class Cause(StrEnum):
    """What is wrong with a step."""

    LOG_PROBABILITIES = "log-probabilities"
    GRADIENT = "gradient"
    SPIKE = "spike"


class UsualLoss(NamedTuple):
    """Mean and standard deviation of the losses of the last steps."""

    mean: float
    deviation: float

    @property
    def highest(self) -> float:
        """The loss above which a step is a spike."""
        return self.mean + SIGMAS * self.deviation


class StepJudge:
    """Decide about the steps of a run, one after the other, equally on all processes.

    A loss is a spike if it lies more than ``SIGMAS`` standard deviations above the mean of the last ``WINDOW_STEPS``
    trained steps. Outliers move both, so a spike that was trained on is remembered as no higher than the threshold:
    one outlier does not blind the guard for the rest of its window, and a level that stays becomes the usual one within
    about twenty steps.

    Args:
        max_skipped_steps: How many steps in a row may be skipped.
        loss_spikes: ``"warn"``, ``"skip"`` or ``"ignore"``. A spike of more than ``max_skipped_steps`` steps is a new
            level, and is trained on.
    """

    state_version = 1

    def __init__(self, max_skipped_steps: int = 3, loss_spikes: str = "warn"):
        self._max_skipped_steps, self._loss_spikes = max_skipped_steps, loss_spikes
        self._losses: deque[float] = deque(maxlen=WINDOW_STEPS)
        self._spike_steps = 0
        self.has_rolled_back = False
        self.non_finite_in_a_row = 0

    def usual(self) -> UsualLoss | None:
        """Return the mean and deviation of the last losses; ``None`` after fewer than ``MIN_STEPS``."""
        count = len(self._losses)
        if count < MIN_STEPS:
            return None
        mean = fsum(self._losses) / count
        deviation = sqrt(fsum((loss - mean) ** 2 for loss in self._losses) / (count - 1))
        return UsualLoss(mean, max(deviation, MIN_DEVIATION * abs(mean)))

    def judge(self, loss: float, finite: bool) -> Decision:
        """Decide about the next step.

        Args:
            loss: Its loss over all processes, nats.
            finite: Whether its log-probabilities and its gradient are finite.

        Returns:
            What to do with it.
        """
        if finite:
            self.non_finite_in_a_row = 0
            return self._judge_loss(loss)
        self.non_finite_in_a_row += 1
        if self.non_finite_in_a_row < self._max_skipped_steps:
            return Decision.SKIP
        if self.has_rolled_back:
            return Decision.STOP
        self.has_rolled_back, self.non_finite_in_a_row = True, 0
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

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {
            "losses": list(self._losses),
            "rolled_back": self.has_rolled_back,
            "spike_steps": self._spike_steps,
            "not_finite_in_a_row": self.non_finite_in_a_row,
        }

    def load_state_dict(self, state: Mapping[str, Any], version: int = state_version) -> None:
        """Continue from a :meth:`state_dict`."""
        self._losses = deque(map(figure, state["losses"]), maxlen=WINDOW_STEPS)
        self.has_rolled_back = flag(state["rolled_back"])
        self._spike_steps = whole(state["spike_steps"])
        self.non_finite_in_a_row = whole(state["not_finite_in_a_row"])


class WatchedPairs(NamedTuple):
    """The pairs of a micro-batch, detached and on their device: reading them at once would stall a GPU.

    Args:
        finite_B: Whether all log-probabilities of a pair are finite.
        row_B: Their rows in the dataset.
        nll_B: What the NLL of each adds to the loss of its step.
        logp_chosen_B, logp_rejected_B: Mean log-probabilities of the responses, nats.
        share_B: Their share in the step's mean over pairs; 0 for a pair that only fills a micro-batch.
        own_B: Their losses, where they are of one's own.
    """

    finite_B: Tensor
    row_B: Tensor
    nll_B: Tensor
    logp_chosen_B: Tensor
    logp_rejected_B: Tensor
    share_B: Tensor
    own_B: Tensor | None = None

    @classmethod
    def of(cls, logps: PairLogps, batch: Mapping[str, Tensor]) -> WatchedPairs:
        """Take the pairs of a micro-batch."""
        nll_sum_B, chosen_B, rejected_B = (
            logp_B.detach() for logp_B in (logps.nll_sum_B, logps.logp_chosen_B, logps.logp_rejected_B)
        )
        finite_B = nll_sum_B.isfinite() & chosen_B.isfinite() & rejected_B.isfinite()
        own_B = None if logps.own is None else logps.own.loss_B.detach()
        if own_B is not None:
            finite_B &= own_B.isfinite()
        weight_B = batch["weight"]
        nll_B = nll_sum_B * weight_B / batch["num_nll_tokens"]
        row_B = batch["row"].clone()  # a view would keep the whole micro-batch, and an evaluation keeps all of them
        return cls(finite_B, row_B, nll_B, chosen_B, rejected_B, weight_B / batch["num_pairs"], own_B)

    def losses(self, beta: float) -> Tensor:
        """Return what each pair adds to the loss of its step, nats; ``inf`` where that is not finite. [B]"""
        loss_B = self.own_B
        if loss_B is None:
            loss_B = beta * odds_ratio_loss(self.logp_chosen_B, self.logp_rejected_B)
        return (self.nll_B + loss_B * self.share_B).where(self.finite_B, torch.inf)


def rows_behind(watched: Sequence[WatchedPairs], cause: Cause, beta: float) -> list[int]:
    """List the rows behind a bad step over all processes, which all have to call this; the heaviest first.

    Args:
        watched: This process's micro-batches of the step.
        cause: ``LOG_PROBABILITIES`` lists the rows that have no finite ones; any other cause every row of the step.
        beta: Weight of the odds-ratio term.

    Returns:
        Their numbers in the dataset.
    """
    mine: list[tuple[float, int]] = []
    if watched:  # of all micro-batches at once, of which an evaluation has many
        is_named = [~x.finite_B if cause is Cause.LOG_PROBABILITIES else x.share_B > 0 for x in watched]
        found = (
            torch.cat(is_named),
            torch.cat([x.losses(beta) for x in watched]),
            torch.cat([x.row_B for x in watched]),
        )
        named, losses, rows = (values_N.tolist() for values_N in found)
        mine = [(loss, row) for is_one, loss, row in zip(named, losses, rows, strict=True) if is_one]
    all_pairs = sorted(gather_object(mine), key=lambda pair: (-pair[0], pair[1]))
    return list(dict.fromkeys(row for _, row in all_pairs))


def rows_in_words(rows: Sequence[int]) -> str:
    """Name rows in a message: ``dataset rows 5, 7 and 30 more``."""
    named = ", ".join(map(str, rows[:MAX_NAMED_ROWS]))
    more = f" and {len(rows) - MAX_NAMED_ROWS} more" if len(rows) > MAX_NAMED_ROWS else ""
    return f"dataset {'row' if len(rows) == 1 else 'rows'} {named}{more}"


def non_finite_weights(model: nn.Module, accelerator: Accelerator) -> list[str]:
    """Name the trained weights that hold NaN or infinity in any process; all processes have to call this."""
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    if not named:
        return []
    own = [own_share(weight) for _, weight in named]
    # One answer for all of them: a GPU is asked once.
    bad = torch.stack([(~weight.isfinite()).any().to(accelerator.device) for weight in own]).float()
    counts = accelerator.reduce(bad, reduction="sum").tolist()
    return [name for (name, _), count in zip(named, counts, strict=True) if count]


def weights_in_words(names: Sequence[str]) -> str:
    """Name weights in a message: ``the weights lm_head.weight and 3 others are NaN or infinite``."""
    others = f" and {len(names) - 1} others" if len(names) > 1 else ""
    return f"the weights {names[0]}{others} are NaN or infinite"


class GuardedRun(Protocol):
    """What a ``StepGuard`` needs of the run it guards."""

    args: ORPOConfig
    state: TrainerState
    model: nn.Module
    accelerator: Accelerator
    gradient_norm: Tensor | float | None  # of the step that is about to be made, before clipping

    def is_world_process_zero(self) -> bool: ...  # whether this process writes the event log
    def loss_sum(self) -> Tensor: ...  # return a copy of the sum of losses that are not logged yet
    def skip_optimizer_step(self, loss_sum: Tensor) -> None:
        """Let the optimizer and the schedule make no step, and set the sum of losses back."""


class StepGuard(TrainerCallback):
    """Guard the optimizer steps of a run, its checkpoints and its result against NaN and infinity.

    Args:
        run: The run.
        meter: Its meter, out of which skipped steps are taken.
        roll_back: Loads the newest good checkpoint up to a step, given a test of the loaded weights; returns its folder
            or ``None``.
    """

    def __init__(
        self, run: GuardedRun, meter: TrainingMeter, roll_back: Callable[[int, Callable[[], bool]], Path | None]
    ):
        self._run, self._meter, self._roll_back_to = run, meter, roll_back
        self.judge = StepJudge()
        self.is_norm_invalid = False  # of the last step: it was skipped, or fp16's loss scale overflowed
        self._watched: list[WatchedPairs] = []
        self._losses: list[Tensor] = []
        self._before: tuple[Tensor, dict[str, Any]] = (torch.zeros(()), {})  # of the step: loss sum, meter's state
        self._lines = 0
        self._bad_from_start: frozenset[str] = frozenset()
        self._steps_made = self._steps_skipped = 0  # since training began, which may be from a checkpoint

    def begin(self) -> None:
        """Forget everything: a training starts."""
        self.judge = StepJudge(self._run.args.max_skipped_steps, self._run.args.loss_spikes)
        self.is_norm_invalid = False
        self._lines, self._bad_from_start = 0, frozenset()
        self._steps_made = self._steps_skipped = 0
        self.forget_micro_batches()

    state_version = StepJudge.state_version

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return self.judge.state_dict()

    def load_state_dict(self, state: Mapping[str, Any], version: int = state_version) -> None:
        """Continue from a :meth:`state_dict`."""
        self.judge.load_state_dict(state, version)

    def watch(self, logps: PairLogps, batch: Mapping[str, Tensor]) -> None:
        """Remember the pairs of a micro-batch until its step is judged."""
        self._watched.append(WatchedPairs.of(logps, batch))

    def add_loss(self, loss: Tensor) -> None:
        """Add the loss of a loader item to that of its step."""
        self._losses.append(loss)

    def forget_micro_batches(self) -> None:
        """Forget the micro-batches so far: the step begins, or is computed again."""
        self._watched, self._losses = [], []

    # ---- Callbacks of the training loop

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Report weights that are not finite from the beginning; the run cannot be judged by them."""
        if bad := self._non_finite_weights():
            self._warn(f"{weights_in_words(bad)} before the first step")
            self._bad_from_start = frozenset(bad)

    def on_step_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Remember what is restored if the step is skipped."""
        self.forget_micro_batches()
        self._before = self._run.loss_sum(), self._meter.state_dict()

    def on_pre_optimizer_step(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Judge the step, and do what was decided."""
        loss, cause = self._measure()
        is_calibration = cause is Cause.GRADIENT and self._loss_scale_is_calibrating()
        decision = self.judge.judge(loss, finite=cause is None or is_calibration)
        if self._is_stepped_already and decision is not Decision.TRAIN:
            decision = Decision.STOP if cause else Decision.WARN
        is_skipped = decision in (Decision.SKIP, Decision.ROLL_BACK)
        self.is_norm_invalid = is_skipped or is_calibration
        self._steps_skipped += self.is_norm_invalid
        self._steps_made += not self.is_norm_invalid
        what = ""
        if decision is not Decision.TRAIN:
            what = self._report(cause or Cause.SPIKE, loss, stops=decision is Decision.STOP, is_skipped=is_skipped)
        if is_skipped:
            self._run.skip_optimizer_step(self._before[0])
            self._meter.leave_out_step(self._before[1])
        if decision is Decision.ROLL_BACK:
            self._roll_back(what)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Prevent a checkpoint of weights that are not finite, and between skipped steps.

        Between skipped steps the weights are nothing new, and the last good checkpoint might be deleted for them.
        """
        if not control.should_save:
            return
        if self._is_untrained or (self.judge.non_finite_in_a_row > 0 and not control.should_training_stop):
            control.should_save = False
        elif bad := self._non_finite_weights():
            control.should_save = False
            self._warn(f"step {state.global_step}: {weights_in_words(bad)}: no checkpoint of them")

    on_epoch_end = on_step_end

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Stop the run if its last step left weights that are not finite, or if no step could be made at all."""
        if bad := self._non_finite_weights():
            raise NonFiniteError(
                f"step {state.global_step}: {weights_in_words(bad)} after the last step; go on from the last"
                " checkpoint, with a lower learning_rate or in bf16 or float32 instead of fp16"
            )
        if self._is_untrained and state.global_step >= state.max_steps:
            weights = f"{weights_in_words(sorted(self._bad_from_start))}; " if self._bad_from_start else ""
            raise NonFiniteError(
                f"of {counted(self._steps_skipped, 'step')} none could be made: {weights}nothing was trained; look at"
                " the weights of the base model, and at the rows that are named above"
            )

    # ---- Judging a step

    @property
    def _is_untrained(self) -> bool:
        """Whether all steps so far were skipped."""
        return self._steps_skipped > 0 and self._steps_made == 0

    @property
    def _is_stepped_already(self) -> bool:
        return self._run.accelerator.distributed_type == DistributedType.DEEPSPEED

    def _measure(self) -> tuple[float, Cause | None]:
        """Return the loss of the step over all processes, and what is not finite in it on any of them."""
        accelerator, norm = self._run.accelerator, self._run.gradient_norm
        if not isinstance(norm, Tensor):  # filled on the device, where ``torch.tensor`` would wait for a copy
            norm = torch.full((), 0.0 if norm is None else norm, device=accelerator.device)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # sharded by FSDP2
        loss = torch.stack(self._losses).sum() if self._losses else torch.zeros((), device=accelerator.device)
        finite = torch.cat([loss.isfinite()[None], *(pairs.finite_B for pairs in self._watched)]).all()
        facts = torch.stack([loss.float(), (~finite).float(), (~norm.isfinite()).float()])
        total_loss, non_finite, bad_gradients = accelerator.reduce(facts, reduction="sum").tolist()
        if non_finite:
            return nan, Cause.LOG_PROBABILITIES
        # DeepSpeed searches fp16's loss scale by itself.
        is_bad = bad_gradients > 0 and not self._is_stepped_already
        return total_loss / accelerator.num_processes, Cause.GRADIENT if is_bad else None

    def _loss_scale_is_calibrating(self) -> bool:
        """Return whether fp16's loss scale is being searched: it starts at 2^16 and is halved at every overflow.

        At a scale of 1 the gradient itself overflows.
        """
        scaler = self._run.accelerator.scaler
        return scaler is not None and scaler.get_scale() > 1

    def _roll_back(self, what: str) -> None:
        """Load the last good checkpoint from before the skipped steps; ``NonFiniteError`` if there is none."""
        step, in_a_row = self._run.state.global_step + 1, self._run.args.max_skipped_steps
        folder = self._roll_back_to(step - in_a_row, lambda: not self._non_finite_weights())
        if folder is None:
            raise NonFiniteError(
                f"step {step}: {what}, the last of {in_a_row} in a row, and there is no good checkpoint from before"
                f" them to go back to; {FIX}"
            )
        self._record(Event.ROLLED_BACK, step, f"went back to the weights of {folder.name}", checkpoint=folder.name)

    def _non_finite_weights(self) -> list[str]:
        """Name the weights that have become NaN or infinite since the run began."""
        names = non_finite_weights(self._run.model, self._run.accelerator)
        return [name for name in names if name not in self._bad_from_start]

    # ---- Reporting

    def _report(self, cause: Cause, loss: float, *, stops: bool, is_skipped: bool) -> str:
        """Record a skipped step or a spike, or stop the run with it; return what is wrong in words."""
        rows = rows_behind(self._watched, cause, self._run.args.beta)
        what, step = self._in_words(cause, loss, rows), self._run.state.global_step + 1
        if stops:
            in_a_row = self._run.args.max_skipped_steps
            tried = f", the last of {in_a_row} in a row, as before the run went back to its last good checkpoint"
            raise NonFiniteError(f"step {step}: {what}{tried if self.judge.has_rolled_back else ''}; {FIX}")
        self._record(
            Event.SKIPPED if is_skipped else Event.SPIKE,
            step,
            f"{'skipped: ' if is_skipped else ''}{what}",
            cause=cause,
            loss=loss,
            rows=rows[:MAX_EVENT_ROWS],
            num_rows=len(rows),
        )
        return what

    def _in_words(self, cause: Cause, loss: float, rows: Sequence[int]) -> str:
        if cause is Cause.LOG_PROBABILITIES:
            return f"log-probabilities are NaN or infinite for {rows_in_words(rows)}"
        if cause is Cause.GRADIENT:
            return f"the gradient of {rows_in_words(rows)} is NaN or infinite"
        usual = self.judge.usual()
        level = f", where {usual.mean:.3f} is usual (deviation {usual.deviation:.2g})" if usual else ""
        return f"a loss of {loss:.3f}{level}; most of it from {rows_in_words(rows)}"

    def _record(self, event: Event, step: int, line: str, **fields: Any) -> None:
        """Write an event, and log a line about it."""
        if not self._run.is_world_process_zero():
            return
        append_event(self._run.args.output_dir, event, step, **fields)
        self._lines += 1
        if self._lines <= MAX_LINES:
            last = "; more of this is only in events.jsonl" if self._lines == MAX_LINES else ""
            logger.warning(f"step {step}: {line}{last}")

    def _warn(self, line: str) -> None:
        if self._run.is_world_process_zero():
            logger.warning(line)

    # ---- Evaluation

    def end_evaluation(self, *, is_training: bool) -> None:
        """Name the rows of an evaluation whose log-probabilities are not finite; its metrics are NaN then.

        Args:
            is_training: Whether the evaluation is part of a training, which goes on without its metrics.

        Raises:
            NonFiniteError: There are such rows, and only the metrics were wanted.
        """
        rows = rows_behind(self._watched, Cause.LOG_PROBABILITIES, self._run.args.beta)
        self.forget_micro_batches()
        if not rows:
            return
        what = self._in_words(Cause.LOG_PROBABILITIES, 0.0, rows)
        if not is_training:
            raise NonFiniteError(f"{what}; look at these rows, and whether the weights of this model are finite")
        line = f"evaluation without result: {what}"
        step = self._run.state.global_step
        self._record(Event.NOT_FINITE, step, line, rows=rows[:MAX_EVENT_ROWS], num_rows=len(rows))
