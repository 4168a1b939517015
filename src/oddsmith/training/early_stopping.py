"""Stop a run whose evaluations no longer improve: the settings ``early_stopping_patience`` and ``..._threshold``."""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any

from transformers import EarlyStoppingCallback, TrainerControl, TrainerState

from ..config import ORPOConfig
from ..errors import ConfigError
from ..metrics import METRICS
from ..system.run_folder import Event, append_event

logger = logging.getLogger(__name__)

# Methods by which a subclass may add metrics to an evaluation.
_MAKE_METRICS = ("pair_losses", "compute_loss", "prediction_step", "evaluation_loop", "evaluate", "log")
# What every evaluation has beside the metrics of the catalogue.
_OTHERS = ("runtime", "samples_per_second", "steps_per_second")


class EarlyStopping(EarlyStoppingCallback):
    """transformers' ``EarlyStoppingCallback`` by the settings, which tells when it stops a run.

    An evaluation counts once, also where it is made up for after a resume, and of several sets the one that has the
    metric counts. A run that is resumed where it was stopped ends at once, unless it has more patience now.

    Args:
        args: Settings of the run.
    """

    def __init__(self, args: ORPOConfig):
        super().__init__(args.early_stopping_patience or 1, args.early_stopping_threshold)
        self.counted_step = -1
        self._is_training = False

    @property
    def is_over(self) -> bool:
        """Whether the patience is used up."""
        return self.early_stopping_patience_counter >= self.early_stopping_patience

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Begin to count, or go on counting in a resumed run."""
        self._is_training = True
        if state.global_step == 0:
            self.early_stopping_patience_counter, self.counted_step = 0, -1
        if self.is_over:
            control.should_training_stop = True
            if state.is_world_process_zero:
                logger.warning("the run was stopped early; give more early_stopping_patience to go on")

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Count no more: who evaluates now does not train."""
        self._is_training = False

    def on_evaluate(
        self, args: Any, state: TrainerState, control: TrainerControl, metrics: Any = None, **kwargs: Any
    ) -> None:
        """Count an evaluation without improvement, and stop after too many in a row."""
        if not self._is_training or metric_of(args) not in (metrics or {}):
            return
        if state.global_step != self.counted_step:
            self.counted_step = state.global_step
            super().on_evaluate(args, state, control, metrics, **kwargs)
        elif self.is_over:
            control.should_training_stop = True
        if self.is_over and state.is_world_process_zero:
            reason = self.reason(args, state)
            logger.warning("step %s: stopped early, because %s", state.global_step, reason)
            append_event(args.output_dir, Event.STOPPED_EARLY, state.global_step, reason=reason)

    def reason(self, args: Any, state: TrainerState) -> str:
        """Say why the run was stopped."""
        least = f" by more than {self.early_stopping_threshold:g}" if self.early_stopping_threshold else ""
        evaluations = f"{self.early_stopping_patience} evaluation{'s' if self.early_stopping_patience > 1 else ''}"
        best = "" if state.best_metric is None else f" ({state.best_metric:.4g})"
        return f"{metric_of(args)} has not improved{least} on its best{best} in {evaluations}"

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        kept = super().state()
        kept["attributes"]["counted_step"] = self.counted_step
        return kept


def early_stopping_of(callbacks: Iterable[Any]) -> EarlyStopping | None:
    """Return the callback that has stopped the training early; ``None`` if it was not stopped."""
    return next((one for one in callbacks if isinstance(one, EarlyStopping) and one.is_over), None)


def metric_of(args: Any) -> str:
    """Return the key of ``metric_for_best_model`` in the metrics of an evaluation."""
    wanted = str(args.metric_for_best_model or "loss")
    return wanted if wanted.startswith("eval_") else f"eval_{wanted}"


def loss_beside(key: str, metrics: Mapping[str, Any]) -> float:
    """Return the loss of the dataset that a metric is of, infinite where there is none.

    Args:
        key: The metric in the metrics of an evaluation, such as ``eval_rewards/accuracies``.
        metrics: Those of the evaluation.

    Returns:
        The loss.
    """
    losses = [name for name in metrics if name.endswith("_loss") and key.startswith(name.removesuffix("loss"))]
    value = metrics[max(losses, key=len)] if losses else math.inf
    return float(value) if isinstance(value, int | float) and not math.isnan(value) else math.inf


def is_better_among_equals(args: Any, state: TrainerState, metrics: Mapping[str, Any]) -> bool:
    """Return whether an evaluation equals the best one so far in its metric, and has a lower loss.

    An accuracy over few pairs is often the same, and the first of equal ones is hardly ever the best trained.

    Args:
        args: Settings of the run.
        state: Of the trainer, with the evaluations so far.
        metrics: Those of the evaluation.

    Returns:
        Whether it does.
    """
    key = metric_of(args)
    if not state.best_global_step or key not in metrics or metrics[key] != state.best_metric:
        return False
    before = [entry for entry in state.log_history if entry.get("step") == state.best_global_step and key in entry]
    return bool(before) and loss_beside(key, metrics) < loss_beside(key, before[-1])


def require_known_metric(run: Any) -> None:
    """Refuse a ``metric_for_best_model`` that no evaluation of a run will have, before the first step.

    Nothing is refused where a function, a method or a callback of the user may add metrics.

    Args:
        run: The trainer.

    Raises:
        ConfigError: It will not be there.
    """
    args, eval_dataset = run.args, run.eval_dataset
    if args.metric_for_best_model is None or eval_dataset is None or _may_have_others(run):
        return
    sets = [f"{name}_" for name in eval_dataset] if isinstance(eval_dataset, Mapping) else [""]
    known = [set_ + name for set_ in sets for name in (*(metric.name for metric in METRICS), *_OTHERS)]
    wanted = metric_of(args).removeprefix("eval_")
    if wanted not in known:
        near = difflib.get_close_matches(wanted, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"such as {sets[0]}loss"
        raise ConfigError(
            f"metric_for_best_model is {args.metric_for_best_model!r}, which no evaluation of this run has; {hint}"
        )


def _may_have_others(run: Any) -> bool:
    if run.compute_metrics is not None or any(map(run.is_overridden, _MAKE_METRICS)):
        return True
    watching = [type(one) for one in run.callback_handler.callbacks if hasattr(one, "on_evaluate")]
    return any(kind.__module__.partition(".")[0] not in ("oddsmith", "transformers", "trl") for kind in watching)
