"""Evaluate within a run: give an evaluation up when the run is to stop, and make up for it when the run continues.

What is logged, which model is the best and every random number after it are then those of an undisturbed run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from transformers import EvalPrediction, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from ..config import ORPOConfig
from .meter import EvaluatedPairs

PADDING = -100  # of prompts for ``include_for_metrics``, as in transformers


class DeferredEvaluation:
    """Whether an evaluation of the current weights was given up; a checkpoint carries it to the resumed run."""

    state_version = 1

    def __init__(self) -> None:
        self.is_due = False
        self.random_states: dict[str, Any] | None = None  # after the evaluation was made up for

    def begin(self) -> None:
        """Forget everything: a training starts."""
        self.is_due, self.random_states = False, None

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"is_due": self.is_due}

    def load_state_dict(self, state: Mapping[str, Any], version: int = state_version) -> None:
        """Continue from a :meth:`state_dict`."""
        self.is_due = state["is_due"]


class EvaluateAtEnd(TrainerCallback):
    """Evaluate after the last step of a run that evaluates at no other time."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps and args.eval_strategy == IntervalStrategy.NO:
            control.should_evaluate = True


def user_metrics(
    compute_metrics: Callable[..., dict[str, Any]],
    pairs: EvaluatedPairs,
    prompts: Sequence[Sequence[int]] | None,
    args: ORPOConfig,
) -> dict[str, Any]:
    """Call the user's ``compute_metrics`` on the pairs of an evaluation.

    Args:
        compute_metrics: Gets ``EvalPrediction``: ``predictions`` [P, 2] holds the mean log-probabilities of chosen and
            rejected, ``label_ids`` [P] is 0 (chosen is the right one). With ``include_for_metrics`` also ``losses``
            [P], ``NLL + beta * L_OR`` of each pair, and ``inputs`` [P, T], the tokens of the prompts padded with -100.
            With ``batch_eval_metrics`` it is called batch by batch, with ``compute_result=True`` at the last.
        pairs: The pairs.
        prompts: Their prompts' tokens; ``None`` where the rows are a stream.
        args: Settings.

    Returns:
        The metrics.
    """
    predictions = pairs.logps_P2.numpy()
    columns: dict[str, np.ndarray] = {"predictions": predictions, "label_ids": np.zeros(len(predictions), np.int64)}
    if "loss" in args.include_for_metrics:
        columns["losses"] = pairs.losses(args.beta).numpy()
    if "inputs" in args.include_for_metrics and prompts is not None:
        width = max(map(len, prompts), default=0)
        columns["inputs"] = np.array([[*ids, *[PADDING] * (width - len(ids))] for ids in prompts], dtype=np.int64)
    if not args.batch_eval_metrics:
        return compute_metrics(EvalPrediction(**columns))
    metrics: dict[str, Any] = {}
    starts = range(0, max(len(predictions), 1), args.eval_batch_size)
    for start in starts:
        batch = {name: column[start : start + args.eval_batch_size] for name, column in columns.items()}
        metrics = compute_metrics(EvalPrediction(**batch), compute_result=start == starts[-1])
    return metrics
