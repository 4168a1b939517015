"""``events.jsonl``: the run's diary in its folder, one strict JSON object a line, only ever appended to.

Every line has ``event`` (``start``, ``log``, ``evaluate``, ``samples``, ``checkpoint``, ``end``), ``time`` (seconds
since 1970, UTC) and ``step`` (optimizer steps done). Numbers that JSON has no word for become ``null``.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, TrainerCallback, TrainerState, TrainingArguments

FILE_NAME = "events.jsonl"


def strict(value: Any) -> Any:
    """The value without what strict JSON cannot hold: non-finite numbers become ``None``, other objects text."""
    if isinstance(value, Mapping):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(item) for item in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float | int):
        return value if math.isfinite(value) else None
    return str(value)


def append_event(folder: str | Path, event: str, step: int, **fields: Any) -> None:
    """Append one event to the diary of a run folder."""
    line = json.dumps(strict({"event": event, "time": time.time(), "step": step, **fields}), allow_nan=False)
    with open(Path(folder) / FILE_NAME, "a", encoding="utf-8") as file:
        file.write(line + "\n")


class EventWriter(TrainerCallback):
    """Writes the diary while transformers' ``Trainer`` runs, on the main process alone.

    Args:
        describe: Returns what the ``start`` event says about model, data and settings.
    """

    def __init__(self, describe: Callable[[], dict[str, Any]]):
        self._describe = describe

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._write(args, state, "start", max_steps=state.max_steps, **self._describe())

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and not any(key.startswith("eval_") for key in logs):
            self._write(args, state, "log", **logs)

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        self._write(args, state, "evaluate", **(metrics or {}))

    def on_save(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._write(args, state, "checkpoint", path=f"checkpoint-{state.global_step}")

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._write(args, state, "end")

    def _write(self, args: TrainingArguments, state: TrainerState, event: str, **fields: Any) -> None:
        if state.is_world_process_zero:
            append_event(args.output_dir, event, state.global_step, **fields)


def describe_run(model: PreTrainedModel, args: TrainingArguments, **more: Any) -> dict[str, Any]:
    """What the ``start`` event says of model and settings."""
    parameters = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return {
        "model": getattr(model.config, "_name_or_path", None),
        "parameters": sum(n for n, _ in parameters),
        "trainable_parameters": sum(n for n, trainable in parameters if trainable),
        "precision": args.mixed_precision,
        **more,
    }


def record_answers(args: TrainingArguments, step: int, prefix: str, answers: list[tuple[str, str]]) -> None:
    """Record answers to held-out prompts: event ``samples``, and a table where the tracker has tables (W&B, Comet)."""
    columns = ["Prompt", "Policy"]
    append_event(
        args.output_dir, "samples", step, set=prefix, answers=[dict(zip(columns, a, strict=True)) for a in answers]
    )
    if "wandb" in args.report_to:
        import wandb

        wandb.log({"game_log": wandb.Table(columns=columns, data=[list(row) for row in answers])})
    if "comet_ml" in args.report_to:
        import comet_ml

        comet_ml.get_running_experiment().log_table("game_log.csv", tabular_data=answers, headers=columns)
