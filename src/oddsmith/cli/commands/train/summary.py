"""Format what is printed before and after training: the banner, and the result in words and as JSON values."""

from __future__ import annotations

import resource
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerState

from .... import __version__
from ....data.report import counted
from ....data.sources.mixture import Share, share_lines
from ....training.early_stopping import early_stopping_of
from ....training.trainable import parameter_counts
from ...parsing.resolve import Settings
from ...terminal.counting import clock
from ...terminal.progress import evaluation_lines, figures

if TYPE_CHECKING:
    from ....training.trainer import ORPOTrainer

MUCH_WAITING = 1.15  # tokens of the slowest process, in those of the mean: the others wait for an eighth of the time
# Files at the root of a run folder that hold what was trained.
WEIGHT_FILES = ("adapter_model*", "model*.safetensors", "model*.safetensors.index.json")


def banner(trainer: ORPOTrainer, settings: Settings, state: TrainerState, shares: Sequence[Share]) -> list[str]:
    """Format the facts of a run before its first step, in aligned lines; ``shares`` are those of a mixture, if any."""
    data = share_lines(shares) if shares else []
    data += [line for report in trainer.data_reports.values() for line in report.lines()]
    facts = {
        "model": [f"{settings.model.model_name_or_path}: {_parameters(trainer, settings)}"],
        "data": data,
        "steps": _steps(trainer, state),
        "batches": [f"{trainer.path.name}: {trainer.path.reason}"],
        "precision": [precision(settings)],
        "folder": [str(settings.orpo.output_dir)],
    }
    lines = [f"Oddsmith {__version__}"]
    for name, texts in facts.items():
        lines += [f"  {name if i == 0 else '':<10} {text}" for i, text in enumerate(texts)]
    return lines


def _parameters(trainer: ORPOTrainer, settings: Settings) -> str:
    """Format ``134.5 M parameters, 4.9 M trainable (3.63%): LoRA of rank 16 on 4-bit weights``."""
    model: Any = trainer.model
    trainable, total = parameter_counts(model)
    text = f"{_count(total)} parameters, {_count(trainable)} trainable ({100 * trainable / total:.3g}%)"
    if not settings.model.use_peft:
        return text
    kind = "DoRA" if settings.model.use_dora else "LoRA"
    bits = " on 4-bit weights" if settings.model.load_in_4bit else " on 8-bit weights"
    quantised = settings.model.load_in_4bit or settings.model.load_in_8bit
    rank = getattr(getattr(model, "active_peft_config", None), "r", settings.model.lora_r)
    return f"{text}: {kind} of rank {rank}{bits if quantised else ''}"


def _count(number: int) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.4g} {unit}"
    return str(number)


def _steps(trainer: ORPOTrainer, state: TrainerState) -> list[str]:
    args = trainer.args
    micro, accumulation, processes = trainer.pairs_per_micro_batch, args.gradient_accumulation_steps, args.world_size
    epochs = f" in {counted(state.num_train_epochs, 'epoch')}" if args.max_steps <= 0 else ""
    lines = [
        f"{counted(state.max_steps, 'step')}{epochs} of {counted(micro * accumulation * processes, 'pair')} each",
        f"  = micro-batch {micro} x accumulation {accumulation} x processes {processes}",
    ]
    plan = trainer.stepper.plan
    share = plan.slowest_share() if plan is not None and processes > 1 else None
    if share is None:
        return lines
    advice = "; train_sampling_strategy: group_by_length lowers it"
    is_grouped = args.train_sampling_strategy == "group_by_length"
    return [
        *lines,
        f"  the slowest of {processes} processes has {share:.2f} times the mean tokens"
        f"{advice if share >= MUCH_WAITING and not is_grouped else ''}",
    ]


def precision(settings: Settings) -> str:
    """Format the number format of the run, with its reason."""
    orpo = settings.orpo
    name = "bf16" if orpo.bf16 else "fp16" if orpo.fp16 else "float32"
    return f"{name}: {orpo.precision_reason}"


def result(trainer: ORPOTrainer, settings: Settings, shares: Sequence[Share], seconds: float) -> dict[str, Any]:
    """Collect the outcome of a run as JSON values; ``seconds`` is from the first step to the last saved file."""
    folder = Path(settings.orpo.output_dir)
    history = trainer.state.log_history
    evaluations = [entry for entry in history if any(key.startswith("eval_") for key in entry)]
    files = sorted({file.name for pattern in WEIGHT_FILES for file in folder.glob(pattern)})
    memory_bytes, memory_of = peak_memory()
    stopped = early_stopping_of(trainer.callback_handler.callbacks)
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
        "best_evaluation": _best(evaluations, settings),
        "data": {name: report.to_dict() for name, report in trainer.data_reports.items()},
        "mixture": [share.to_dict() for share in shares],
        "files": files,
        "next": _next_commands(trainer, settings),
    }


def result_lines(document: dict[str, Any]) -> list[str]:
    """Format the outcome of a run for reading."""
    memory = f"{document['peak_memory_bytes'] / 2**30:.2f} GiB of {document['peak_memory_of']} memory at most"
    lines = ["", f"done: {document['steps']:,} steps in {clock(document['seconds'])}, {memory}"]
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
    lines.append(f"  model in {document['output_dir']}: {', '.join(document['files'])}")
    return lines + [f"  next: {command}" for command in document["next"]]


def _best(evaluations: list[dict[str, Any]], settings: Settings) -> dict[str, Any] | None:
    """Return the best evaluation: by ``metric_for_best_model``, else by the lowest loss."""
    wanted = settings.orpo.metric_for_best_model or "loss"
    key = wanted if wanted.startswith("eval_") else f"eval_{wanted}"
    sign = -1.0 if settings.orpo.greater_is_better else 1.0
    if not any(key in entry for entry in evaluations):  # several sets, each with its own prefix
        key = next((name for entry in evaluations for name in entry if name.endswith("_loss")), key)
    measured = [entry for entry in evaluations if isinstance(entry.get(key), int | float)]
    return min(measured, key=lambda entry: sign * entry[key]) if measured else None


def _next_commands(trainer: ORPOTrainer, settings: Settings) -> list[str]:
    folder = shlex.quote(str(settings.orpo.output_dir))
    has_own = trainer.eval_dataset is not None
    commands = [f"oddsmith eval {folder}" if has_own else f"oddsmith eval {folder} --dataset-name DATASET"]
    if not trainer.is_encoder_decoder:
        commands += [f"oddsmith chat {folder}", f"oddsmith export {folder} --to gguf"]
    return commands


def peak_memory() -> tuple[int, str]:
    """Return the peak memory of this process in bytes, and its kind: ``"device"`` or ``"resident"``."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated(), "device"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (peak if sys.platform == "darwin" else peak * 1024), "resident"
