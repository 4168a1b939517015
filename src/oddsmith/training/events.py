"""Write the event log while transformers' ``Trainer`` runs; its format is in ``system/run_folder.py``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from transformers import TrainerCallback, TrainerState, TrainingArguments

from ..config.catalogue import SUMMARY_SETTINGS
from ..model.generation import Reply
from ..system.run_folder import Event, append_event
from ..system.words import word_of
from .trackers import tracker_may_fail
from .trainable import parameter_counts


class EventWriter(TrainerCallback):
    """Writes the event log, on the main process only; ``describe`` returns the fields of the ``start`` event."""

    def __init__(self, describe: Callable[[], dict[str, Any]]):
        self._describe = describe

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._write(args, state, Event.START, max_steps=state.max_steps, **self._describe())

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and not _of_evaluation(logs):
            self._write(args, state, Event.LOG, **logs)

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        self._write(args, state, Event.EVALUATE, **(metrics or {}))

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._write(args, state, Event.END)

    def _write(self, args: TrainingArguments, state: TrainerState, event: Event, **fields: Any) -> None:
        if state.is_world_process_zero:
            append_event(args.output_dir, event, state.global_step, **fields)


def _of_evaluation(logs: dict[str, Any]) -> bool:
    """Return whether ``Trainer.evaluate`` logged this: it adds ``PREFIX_runtime``, for any ``metric_key_prefix``.

    So has the last line of a training, with ``total_flos`` beside it, and with ``include_num_input_tokens_seen`` every
    line of a training, with ``loss``.
    """
    return any(name.endswith("_runtime") for name in logs) and not logs.keys() & {"total_flos", "loss"}


def describe_run(model: Any, args: TrainingArguments, **more: Any) -> dict[str, Any]:
    """Return the fields of the ``start`` event: model and settings, and ``more``.

    The model may be wrapped by PEFT.
    """
    trainable, total = parameter_counts(model)
    return {
        "model": getattr(model.config, "_name_or_path", None),
        "parameters": total,
        "trainable_parameters": trainable,
        "precision": args.mixed_precision,
        "settings": {name: getattr(args, name) for name in SUMMARY_SETTINGS if hasattr(args, name)},
        "adapter": _describe_adapter(model, without_dropout=getattr(args, "disable_dropout", False)),
        **more,
    }


def _describe_adapter(model: Any, without_dropout: bool) -> dict[str, Any] | None:
    """Describe an adapter; ``None`` without one."""
    config = getattr(model, "active_peft_config", None)
    if config is None:
        return None
    kind = word_of(config.peft_type)
    if kind != "LORA":
        return {"adapter": kind}
    names = [*(["DoRA"] if config.use_dora else ["LoRA"]), *(["rank-stabilised"] if config.use_rslora else [])]
    targets = config.target_modules
    facts = {
        "adapter": " ".join(reversed(names)),
        "rank": config.r,
        "alpha": config.lora_alpha,
        "dropout": 0.0 if without_dropout else config.lora_dropout,
        "start": config.init_lora_weights if isinstance(config.init_lora_weights, str) else None,
        # "all-linear" has become a path for every layer; the last names say the same.
        "on": sorted({name.rpartition(".")[2] for name in targets}) if isinstance(targets, list | set) else targets,
        "trained_in_full": config.modules_to_save,
    }
    return {name: value for name, value in facts.items() if value is not None}


def record_answers(
    args: TrainingArguments, step: int, prefix: str, prompts: Sequence[str], replies: Sequence[Reply]
) -> None:
    """Record answers to held-out prompts: event ``samples``, and a table where the tracker has tables (W&B, Comet)."""
    columns = ["Prompt", "Policy"]
    answers = [(prompt, reply.text) for prompt, reply in zip(prompts, replies, strict=True)]
    described = [
        {**dict(zip(columns, texts, strict=True)), "is_cut": not reply.is_finished}
        for texts, reply in zip(answers, replies, strict=True)
    ]
    append_event(args.output_dir, Event.SAMPLES, step, set=prefix, answers=described)
    if "wandb" in args.report_to:
        with tracker_may_fail("wandb"):
            import wandb

            wandb.log({"game_log": wandb.Table(columns=columns, data=[list(row) for row in answers])})
    if "comet_ml" in args.report_to:
        with tracker_may_fail("comet_ml"):
            import comet_ml

            comet_ml.get_running_experiment().log_table("game_log.csv", tabular_data=answers, headers=columns)
