"""Evaluations within a run: given up when the run is to stop, and made up for when it goes on.

What is logged, which model is the best and every random number after it are then those of an undisturbed run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, IntervalStrategy

from ..checkpoint.state import random_states, restore_random_states
from .resuming import CommittedCheckpoints
from .stopping import EvaluationGivenUp, StopOnRequest


class DueEvaluation:
    """Whether an evaluation of the weights as they are was given up; checkpoints carry it to the run that goes on."""

    def __init__(self) -> None:
        self.is_due = False

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"is_due": self.is_due}

    def restore(self, state: dict[str, Any]) -> None:
        """From a checkpoint.

        Args:
            state: What :meth:`state` returned.
        """
        self.is_due = state["is_due"]


class InterruptibleEvaluation(CommittedCheckpoints):
    """The part of ``ORPOTrainer`` that gives up evaluations, and makes up for them."""

    _evaluation_due: DueEvaluation
    _states_after_evaluation: dict[str, Any] | None = None

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self._evaluation_due = self._carried["evaluation"] = DueEvaluation()
        self._states_after_evaluation = None
        return super().train(*args, **kwargs)

    @property
    def is_unfinished(self) -> bool:
        """Whether training was stopped, and steps or an evaluation are still to be made."""
        return self._is_stopped and (self.state.global_step < self.state.max_steps or self._evaluation_due.is_due)

    @property
    def _is_stopped(self) -> bool:
        """Whether a ``StopOnRequest`` among the callbacks has stopped this training."""
        callbacks = self.callback_handler.callbacks
        return any(isinstance(callback, StopOnRequest) and callback.stopped for callback in callbacks)

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> dict[str, float]:
        states, logged = self._random_states(), len(self.state.log_history)
        try:
            metrics = super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)
        except EvaluationGivenUp:
            self._restore(states)
            del self.state.log_history[logged:]  # of several datasets, those that were finished
            self._evaluation_due.is_due = True
            self.control.should_evaluate = False
            self.control.should_save = self.control.should_training_stop = True
            return {}
        self._evaluation_due.is_due = False
        return metrics

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        if self._evaluation_due.is_due:
            return True  # which means no more than that a checkpoint is written
        return super()._determine_best_metric(metrics=metrics, trial=trial)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self._evaluation_due.is_due and not self.control.should_training_stop:
            self._load_rng_state(kwargs["resume_from_checkpoint"])
            self._make_up_for_evaluation(kwargs["trial"], kwargs["ignore_keys_for_eval"])
            self._states_after_evaluation = self._random_states()
        if not self.control.should_training_stop:
            super()._run_epoch(*args, **kwargs)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Where an evaluation was made up for, its random numbers have been drawn since the checkpoint."""
        if self._states_after_evaluation is None:
            super()._load_rng_state(checkpoint)
        else:
            self._restore(self._states_after_evaluation)
            self._states_after_evaluation = None

    def _finalize_training(self, trial: Any, *args: Any, **kwargs: Any) -> Any:
        if (
            self._evaluation_due.is_due and not self._is_stopped
        ):  # after the last step, so there was no epoch to go on with
            self._make_up_for_evaluation(trial, None)
        if not self.is_unfinished:
            return super()._finalize_training(trial, *args, **kwargs)
        # The best model is loaded when all is done; and a total limit of 1 would remove the checkpoint just made.
        best, self.state.best_model_checkpoint = self.state.best_model_checkpoint, None
        try:
            return super()._finalize_training(trial, *args, **kwargs)
        finally:
            self.state.best_model_checkpoint = best

    def _make_up_for_evaluation(self, trial: Any, ignore_keys: Any) -> None:
        metrics = self._evaluate(trial, ignore_keys)
        checkpoint = Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if not self._evaluation_due.is_due and self._determine_best_metric(metrics, trial) and checkpoint.is_dir():
            self.state.best_model_checkpoint = str(checkpoint)

    def _random_states(self) -> dict[str, Any]:
        return random_states(alone=self.args.world_size == 1)

    def _restore(self, states: dict[str, Any]) -> None:
        restore_random_states(states, seed=self.args.seed, rank=self.args.process_index)


class EvaluateAtEnd(TrainerCallback):
    """Evaluates after the last step of a run that evaluates at no other time."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps and args.eval_strategy == IntervalStrategy.NO:
            control.should_evaluate = True
