"""Format what is printed after training: the result in words and as JSON values."""

from __future__ import annotations

import resource
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ....data.sources.mixture import Share
from ....system.words import counted
from ....training.early_stopping import early_stopping_of, loss_beside, metric_of
from ...parsing.resolve import Settings
from ...terminal.counting import clock
from ...terminal.progress import evaluation_lines, figures

if TYPE_CHECKING:
    from ....training.trainer import ORPOTrainer

# Files at the root of a run folder that hold what was trained.
WEIGHT_FILES = ("adapter_model*", "model*.safetensors", "model*.safetensors.index.json")


def result(trainer: ORPOTrainer, settings: Settings, shares: Sequence[Share], seconds: float) -> dict[str, Any]:
    """Collect the outcome of a run as JSON values; ``seconds`` is from the first step to the last saved file."""
    folder = Path(settings.orpo.output_dir)
    history = trainer.state.log_history
    evaluations = [entry for entry in history if any(key.startswith("eval_") for key in entry)]
    files = sorted({file.name for pattern in WEIGHT_FILES for file in folder.glob(pattern)})
    memory_bytes, memory_of = peak_memory()
    stopped = early_stopping_of(trainer.callback_handler.callbacks)
    best = _best(evaluations, settings)
    return {
        "command": "train",
        "output_dir": str(folder),
        "steps": trainer.state.global_step,
        "stopped_early": None if stopped is None else stopped.reason(trainer.args, trainer.state),
        "seconds": seconds,
        "peak_memory_bytes": memory_bytes,
        "peak_memory_of": memory_of,
        "metrics": next((entry for entry in reversed(history) if "loss" in entry), {}),
        "evaluation": evaluations[-1] if evaluations else None,
        "best_evaluation": best,
        "kept": _kept(trainer, best, len({entry["step"] for entry in evaluations})),
        "data": {name: report.to_dict() for name, report in trainer.data_reports.items()},
        "mixture": [share.to_dict() for share in shares],
        "files": files,
        "next": _next_commands(trainer, settings),
    }


def result_lines(document: dict[str, Any]) -> list[str]:
    """Format the outcome of a run for reading."""
    memory = f"{document['peak_memory_bytes'] / 2**30:.2f} GiB of {document['peak_memory_of']} memory at most"
    lines = ["", f"done: {counted(document['steps'], 'step')} in {clock(document['seconds'])}, {memory}"]
    if document["stopped_early"]:
        lines.append(f"  stopped early, because {document['stopped_early']}")
    if document["metrics"]:
        lines.append(
            f"  training, at step {document['metrics']['step']}: {'  '.join(figures(document['metrics']).values())}"
        )
    best = document["best_evaluation"]
    if best is not None:
        found = [line.removeprefix("eval  ") for line in evaluation_lines(best)]
        lines += [f"  best evaluation, at step {best['step']}: {line}" for line in found]
    lines.append(f"  kept: the weights of step {document['kept']['step']}: {document['kept']['why']}")
    lines.append(f"  model in {document['output_dir']}: {', '.join(document['files'])}")
    return lines + [f"  next: {command}" for command in document["next"]]


def _best(evaluations: list[dict[str, Any]], settings: Settings) -> dict[str, Any] | None:
    """Return the best evaluation: by ``metric_for_best_model``, else by the lowest loss."""
    key = metric_of(settings.orpo)
    sign = -1.0 if settings.orpo.greater_is_better else 1.0
    if not any(key in entry for entry in evaluations):  # several sets, each with its own prefix
        key = next((name for entry in evaluations for name in entry if name.endswith("_loss")), key)
    measured = [entry for entry in evaluations if isinstance(entry.get(key), int | float)]
    return min(measured, key=lambda entry: (sign * entry[key], loss_beside(key, entry))) if measured else None


def _kept(trainer: ORPOTrainer, best: dict[str, Any] | None, evaluations: int) -> dict[str, Any]:
    """Say which weights the run folder holds, and why."""
    args, step = trainer.args, trainer.state.global_step
    metric = metric_of(args)
    if trainer.loaded_best_step is not None:
        of = f"best {metric.removeprefix('eval_')} of {counted(evaluations, 'evaluation')}"
        value = "" if trainer.state.best_metric is None else f", {trainer.state.best_metric:.4g}"
        tie = "" if metric.endswith("_loss") else "; of equal ones the one with the lower loss"
        return {"step": trainer.loaded_best_step, "why": f"{of}{value}{tie}"}
    why = "the last"
    if best is not None and best["step"] < step:
        why += f"; step {best['step']} evaluated better, and load_best_model_at_end would keep it"
    return {"step": step, "why": why}


def _next_commands(trainer: ORPOTrainer, settings: Settings) -> list[str]:
    folder = shlex.quote(str(settings.orpo.output_dir))
    has_own = trainer.eval_dataset is not None
    commands = [f"oddsmith eval {folder}" if has_own else f"oddsmith eval {folder} --dataset-name DATASET"]
    if not trainer.is_encoder_decoder:
        commands += [f"oddsmith chat {folder}", f"oddsmith export {folder} --to gguf"]
    return [f"oddsmith diagnose {folder}", f"oddsmith monitor {folder}", *commands]


def peak_memory() -> tuple[int, str]:
    """Return the peak memory of this process in bytes, and its kind: ``"device"`` or ``"resident"``."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated(), "device"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (peak if sys.platform == "darwin" else peak * 1024), "resident"
