"""Evaluate within a run: give an evaluation up when the run is to stop, and make up for it when the run continues.

What is logged, which model is the best and every random number after it are then those of an undisturbed run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from transformers import EvalPrediction, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, denumpify_detensorize

from ..batching.collate import trl_features
from ..checkpoint.values import flag
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
        self.is_due = flag(state["is_due"])


class EvaluateAtEnd(TrainerCallback):
    """Evaluate after the last step of a run that evaluates at no other time."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps and args.eval_strategy == IntervalStrategy.NO:
            control.should_evaluate = True


class EvaluatingTrainer(Protocol):
    """What an evaluation needs of a trainer to compute the user's metrics."""

    args: ORPOConfig
    compute_metrics: Any
    preprocess_logits_for_metrics: Any
    is_encoder_decoder: bool


def predictions_of(trainer: EvaluatingTrainer, pairs: EvaluatedPairs, rows: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Return what :func:`user_metrics` does, for the pairs of an evaluation and their tokenized rows."""
    if trainer.compute_metrics is not None and trainer.preprocess_logits_for_metrics is not None:
        labels = torch.zeros(len(pairs.logps_P2), dtype=torch.long)
        pairs = pairs._replace(logps_P2=trainer.preprocess_logits_for_metrics(pairs.logps_P2, labels))
    prompts = None
    if "inputs" in trainer.args.include_for_metrics and rows is not None:
        prompts = [trl_features(row, trainer.is_encoder_decoder)["prompt_input_ids"] for row in rows]
    return user_metrics(trainer.compute_metrics, pairs, prompts, trainer.args)


def user_metrics(
    compute_metrics: Callable[..., dict[str, Any]] | None,
    pairs: EvaluatedPairs,
    prompts: Sequence[Sequence[int]] | None,
    args: ORPOConfig,
) -> tuple[Any, Any, dict[str, Any]]:
    """Return predictions and labels of an evaluation, and what the user's ``compute_metrics`` makes of them.

    Args:
        compute_metrics: Gets ``EvalPrediction``: ``predictions`` [P, 2] holds the mean log-probabilities of chosen and
            rejected, ``label_ids`` [P] is 0 (chosen is the right one). With ``include_for_metrics`` also ``losses``
            [P], ``NLL + beta * L_OR`` of each pair, and ``inputs`` [P, T], the tokens of the prompts padded with -100.
            With ``batch_eval_metrics`` it is called batch by batch, with ``compute_result=True`` at the last. ``None``:
            no metrics.
        pairs: The pairs.
        prompts: Their prompts' tokens; ``None`` where the rows are a stream.
        args: Settings.

    Returns:
        Predictions and labels, without ``eval_do_concat_batches`` as lists of batches, and the metrics.
    """
    predictions = pairs.logps_P2.numpy()
    columns: dict[str, Any] = {"predictions": predictions, "label_ids": np.zeros(len(predictions), np.int64)}
    if "loss" in args.include_for_metrics:
        columns["losses"] = pairs.losses(args.beta).numpy()
    if "inputs" in args.include_for_metrics and prompts is not None:
        width = max(map(len, prompts), default=0)
        columns["inputs"] = np.array([[*ids, *[PADDING] * (width - len(ids))] for ids in prompts], dtype=np.int64)
    starts = range(0, max(len(predictions), 1), args.eval_batch_size)
    batches = [{name: column[i : i + args.eval_batch_size] for name, column in columns.items()} for i in starts]
    if not args.eval_do_concat_batches:
        columns = {name: [batch[name] for batch in batches] for name in columns}
    metrics: dict[str, Any] = {}
    if compute_metrics is not None and args.batch_eval_metrics:
        for batch in batches:
            metrics = compute_metrics(EvalPrediction(**batch), compute_result=batch is batches[-1])
    elif compute_metrics is not None:
        metrics = compute_metrics(EvalPrediction(**columns))
    return columns["predictions"], columns["label_ids"], denumpify_detensorize(metrics)


class _BatchByBatch:
    """Call the user's ``compute_metrics`` on the batches of a subclass's ``prediction_step``, one batch late.

    transformers asks accelerate which batch is the last, and accelerate does not know our loaders.
    """

    def __init__(self, compute_metrics: Callable[..., dict[str, Any]]):
        self._compute_metrics = compute_metrics
        self._latest: EvalPrediction | None = None

    @property
    def has_predictions(self) -> bool:
        """Whether there was a batch."""
        return self._latest is not None

    def __call__(self, prediction: EvalPrediction, compute_result: bool = False) -> dict[str, Any]:
        if self._latest is not None:
            self._compute_metrics(self._latest, compute_result=False)
        self._latest = prediction
        return {}

    def metrics(self) -> dict[str, Any]:
        """Return the metrics of the whole evaluation, after its last batch."""
        if self._latest is None:
            return {}
        return denumpify_detensorize(self._compute_metrics(self._latest, compute_result=True))


@contextmanager
def metrics_of_own_step(trainer: EvaluatingTrainer) -> Iterator[_BatchByBatch]:
    """Let transformers' loop compute the user's metrics of what a subclass's ``prediction_step`` returns."""
    compute, included = trainer.compute_metrics, trainer.args.include_for_metrics
    batches = _BatchByBatch(compute)
    # transformers would look for one main input in every item.
    trainer.args.include_for_metrics = [name for name in included if name != "inputs"]
    if compute is not None and trainer.args.batch_eval_metrics:
        trainer.compute_metrics = batches
    try:
        yield batches
    finally:
        trainer.compute_metrics, trainer.args.include_for_metrics = compute, included
