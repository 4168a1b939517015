"""Format what is printed before a run begins: what it trains, on what, how, for how long, and what it will keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from typing import TYPE_CHECKING, Any

from transformers import TrainerState

from .... import __version__
from ....data.sources.mixture import Share, share_lines
from ....model.logprobs.self_check import INEXACT
from ....system.words import counted, word_of
from ....training.early_stopping import metric_of
from ....training.trainable import parameter_counts
from ...parsing.resolve import Settings
from ...terminal.counting import clock

if TYPE_CHECKING:
    from ....training.trainer import ORPOTrainer

MUCH_WAITING = 1.15  # tokens of the slowest process, in those of the mean: the others wait for an eighth of the time


def banner(
    trainer: ORPOTrainer,
    settings: Settings,
    state: TrainerState,
    shares: Sequence[Share] = (),
    time_limit_s: float | None = None,
    *,
    verbose: bool = False,
) -> list[str]:
    """Format the facts of a run before its first step, in aligned lines.

    Args:
        trainer: Of the run.
        settings: Of the run.
        state: Of the trainer.
        shares: Those of a mixture, if any.
        time_limit_s: That of the command.
        verbose: Whether the figures are told by which the layout of the batches was chosen.

    Returns:
        The lines.
    """
    data = share_lines(shares) if shares else []
    data += [line for report in trainer.data_reports.values() for line in report.lines()]
    facts = {
        "model": [f"{settings.model.model_name_or_path}: {_parameters(trainer, settings)}"],
        "data": data,
        "steps": _steps(trainer, state),
        "learning": [_learning(trainer.args, state)],
        "evaluation": [_evaluation(trainer, state)],
        "saving": [_saving(trainer.args, state)],
        "batches": _batches(trainer, verbose),
        "precision": [precision(settings)],
        "time limit": [_time_limit(time_limit_s)],
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
        f"  = batch size {micro} x accumulation {accumulation} x processes {processes}",
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


def _learning(args: Any, state: TrainerState) -> str:
    """Format ``rate 0.0002, cosine after 10 steps of warm-up; beta 0.1``."""
    schedule = word_of(args.lr_scheduler_type).replace("_", " ")
    warmup = args.get_warmup_steps(state.max_steps)
    after = f" after {counted(warmup, 'step')} of warm-up" if warmup else ", no warm-up"
    return f"rate {args.learning_rate:g}, {schedule}{after}; beta {args.beta:g}"


def _evaluation(trainer: ORPOTrainer, state: TrainerState) -> str:
    """Say when the model is evaluated, on how many pairs, and what happens to the best one."""
    args, rows = trainer.args, trainer.eval_dataset
    if rows is None:
        return "none: no pairs are held out (test_split_size, eval_dataset_name)"
    sets = list(rows.values()) if isinstance(rows, Mapping) else [rows]
    pairs = [len(one) for one in sets if isinstance(one, Sized)]
    on = f" on {counted(sum(pairs), 'pair')}" if len(pairs) == len(sets) else ""
    strategy = word_of(args.eval_strategy)
    when = {"no": "after the last step", "epoch": "after each epoch"}.get(strategy, "")
    when = when or _every(state.eval_steps, state, "eval_steps")
    metric = metric_of(args).removeprefix("eval_")
    best = f"; the best by {metric} is kept" if args.load_best_model_at_end else ""
    patience = args.early_stopping_patience
    early = f"; stops after {patience} without a better one" if patience is not None else ""
    return f"{when}{on}{best}{early}"


def _saving(args: Any, state: TrainerState) -> str:
    """Say when a checkpoint is saved, and how many are kept."""
    strategy = word_of(args.save_strategy)
    if strategy == "no":
        return "the model alone, at the end: no checkpoint, so a stop loses the run (save_strategy: no)"
    when = {"epoch": "after each epoch", "best": "after each evaluation that is the best so far"}.get(strategy, "")
    when = when or _every(state.save_steps, state, "save_steps")
    kept = f"; the newest {args.save_total_limit} are kept" if args.save_total_limit else "; all are kept"
    return f"{when}{kept}"


def _every(steps: float | None, state: TrainerState, setting: str) -> str:
    steps = int(steps or 0)
    if not steps or steps >= state.max_steps:
        return f"after the last step ({setting} is {steps:,})"
    return f"every {counted(steps, 'step')}" if steps > 1 else "after each step"


def _batches(trainer: ORPOTrainer, verbose: bool) -> list[str]:
    """Say what the layout of the batches means for the run; with ``verbose`` the figures that decided."""
    path = trainer.path
    if path.name == "padded batches":
        reason = path.reason if verbose or not path.reason.startswith(INEXACT) else INEXACT
        return [f"padded, which is slower, {trainer.pairs_per_micro_batch} a micro-batch: {reason}"]
    lines = ["packed without padding, and what answers share is computed once: the same results, sooner"]
    if path.max_tokens is not None:
        lines.append(f"  a step is computed in parts of at most {path.max_tokens:,} tokens, whatever the batch size")
    return lines + [f"  {path.reason}"] * verbose


def _time_limit(seconds: float | None) -> str:
    if seconds is None:
        return "none; --time-limit 3h50m would stop with a checkpoint before it"
    return f"{clock(seconds)} from the start of the command; it stops with a checkpoint before"


def precision(settings: Settings) -> str:
    """Format the number format of the run, with its reason."""
    orpo = settings.orpo
    name = "bf16" if orpo.bf16 else "fp16" if orpo.fp16 else "float32"
    return f"{name}: {orpo.precision_reason}"
