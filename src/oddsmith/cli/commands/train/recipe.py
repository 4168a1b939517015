"""Make the trainer of a recipe, for engines that call a function in each process, as Ray Train does."""

from __future__ import annotations

from collections.abc import Iterable

from transformers import TrainerCallback

from ....training.evaluation import EvaluateAtEnd
from ....training.trainer import ORPOTrainer
from ...parsing.resolve import build, resolve
from ...parsing.schema import fields_for_run
from ...terminal.outcome import RECIPE
from .assembly import WriteSettings, make_trainer, read_rows
from .command import offering_columns, require_names


def trainer_from_recipe(*words: str, callbacks: Iterable[TrainerCallback] = ()) -> ORPOTrainer:
    """Make the trainer that ``oddsmith train`` with the same words trains with: a recipe, then settings as flags. ::

        trainer = trainer_from_recipe("recipe.yaml", "--output-dir", "runs/mine")
        trainer.train(resume_from_checkpoint=checkpoint)  # None: from the beginning
        trainer.save_model()

    The run folder is that of the command, with ``run.yaml``, so the command can resume it. What the command itself does
    beside training is left to the caller: it prints no progress, and listens to no signals (``StopOnRequest`` does).

    Args:
        *words: Those after ``oddsmith train``, without the flags that are no settings (``--resume``, ``--time-limit``).
        callbacks: Of transformers, beside those of the trainer.

    Returns:
        The trainer, with its rows tokenized and its model loaded.

    Raises:
        ConfigError: A setting is unknown, wrong, or missing.
        DataError: A row is wrong.
        ModelError: The model cannot be loaded or trained.
    """
    resolved = resolve(words, fields_for_run(), [RECIPE])
    require_names(resolved)
    settings = build(resolved)
    with offering_columns(settings):
        train_rows, eval_rows, _ = read_rows(settings)
        trainer = make_trainer(settings, train_rows, eval_rows, callbacks=[*callbacks])
    if trainer.eval_dataset is not None:
        trainer.add_callback(EvaluateAtEnd())
    trainer.add_callback(WriteSettings(resolved, settings))
    return trainer
