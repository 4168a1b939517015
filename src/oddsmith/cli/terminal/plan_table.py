"""Print what ``oddsmith plan`` predicts: the steps, a table of memory, and which way fits; or all of it as JSON."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from ...system.words import counted
from .console import show, show_line
from .counting import clock

if TYPE_CHECKING:
    from ...planning.recipe import Choice, Plan
    from ..commands.train.rehearsal import Rehearsed

WIDTH = 80
GB = 1e9
CLOCK_FROM_S = 60  # shorter times are given in seconds
# Parts of a rank's memory, by the heading of their column.
PARTS = {"weights": "weights", "grads": "gradients", "optim": "optimizer", "exch": "exchange", "activ": "activations"}


def print_plan(plan: Plan, train: Rehearsed) -> None:
    """Print a plan on stdout, in lines of 80 characters."""
    for name, text in _facts(plan, train).items():
        for number, line in enumerate(textwrap.wrap(text, WIDTH - 11, break_on_hyphens=False)):
            show_line(f"{name if number == 0 else '':<10} {line}")
    show_line("")
    show_line(
        f"{'GB of a rank':<22}" + "".join(f"{heading:>8}" for heading in PARTS) + f"{'sum':>6}{'fits':>5}{'s/step':>7}"
    )
    for choice in plan.choices:
        show_line(_row(choice))
    show("")
    for line in _verdict(plan):
        show(textwrap.fill(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False))


def name_of(choice: Choice) -> str:
    """Return the name of a choice, as in ``LoRA, FSDP2``."""
    return choice.training if choice.sharing.ranks == 1 else f"{choice.training}, {choice.sharing.kind}"


def _row(choice: Choice) -> str:
    fits = ("ckpt" if choice.checkpointing and not choice.is_recipe else "yes") if choice.fits else "no"
    parts = "".join(f"{_size(getattr(choice.memory, part)):>8}" for part in PARTS.values())
    step = "-" if choice.step is None else _seconds(choice.step.middle_s)
    mark = ">" if choice.is_recipe else " "
    return f"{mark} {name_of(choice):<20}{parts}{_size(choice.memory.total):>6}{fits:>5}{step:>7}"


def _size(size_bytes: float) -> str:
    value = size_bytes / GB
    return "-" if value <= 0 else f"{value:,.{2 if value < 10 else 1 if value < 100 else 0}f}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2g}" if seconds < 10 else f"{seconds:,.0f}"


def _span(lower_s: float, upper_s: float) -> str:
    if upper_s < CLOCK_FROM_S:
        return f"{_seconds(lower_s)} to {_seconds(upper_s)} s"
    return f"{clock(lower_s)} to {clock(upper_s)}"


def _facts(plan: Plan, train: Rehearsed) -> dict[str, str]:
    found, machine = plan.efficiency, plan.machine
    unit = "GPU" if machine.on_gpu else "process"
    where = machine.name if machine.ranks == 1 else f"{machine.ranks} x {machine.name}"
    machines = f", {machine.nodes} machines" if machine.nodes > 1 else ""
    rows = "all" if train.is_whole else f"a sample of {train.report.rows:,} rows"
    tokens = "by batch sizes" if plan.recipe.max_tokens is None else f"at most {plan.recipe.max_tokens:,} tokens each"
    share = found.computed_share
    laid_out = (
        f"packed rows compute {share:.0%} of the tokens: what sequences share is computed once"
        if share <= 1
        else f"padding makes {share:.2f} times the tokens"
    )
    facts = {
        "machine": f"{where}{machines}; {machine.usable / GB:,.1f} GB for a {unit}",
        "model": f"{plan.numbers / 1e6:,.1f} M parameters, {plan.trained_numbers / 1e6:,.1f} M trained",
        "pairs": f"{train.report.kept:,} ({rows}); the longest has {found.longest_pair:,} tokens",
        "batches": f"{plan.path}: {plan.reason}",
        "steps": f"{counted(found.steps, 'step')} in an epoch, {counted(found.pairs_per_step, 'pair')} each;"
        f" {found.micro_batches:.1f} micro-batches a rank, {tokens}",
        "rows": laid_out,
    }
    if machine.ranks > 1:
        facts["balance"] = f"the slowest rank has {found.slowest_share:.2f} times the mean tokens"
    return facts


def _verdict(plan: Plan) -> list[str]:
    recipe, machine = plan.recipe, plan.machine
    needs = f"{recipe.memory.total / GB:,.1f} of {machine.usable / GB:,.1f} GB"
    fitting = [choice for choice in plan.choices if choice.fits and not choice.is_recipe]
    names = "; ".join(f"{name_of(one)}{' with gradient_checkpointing' if one.checkpointing else ''}" for one in fitting)
    if recipe.fits:
        lines = [f"> This recipe fits: {name_of(recipe)} takes {needs}."]
        lines += [f"These fit, too: {names}."] if names else []
    else:
        lines = [f"> This recipe does not fit: {name_of(recipe)} takes {needs}."]
        lines += [
            f"What fits: {names}." if names else "Nothing here fits: take more GPUs, larger ones, or less length."
        ]
    if recipe.step is not None:
        lower, upper = recipe.step.lower_s, recipe.step.upper_s
        steps = plan.efficiency.steps
        source = "the rates of data sheets, not measured" if machine.on_gpu else "a product and a copy, timed here"
        lines.append(
            f"A step takes {_span(lower, upper)}, an epoch {_span(lower * steps, upper * steps)}: predicted from"
            f" {source}."
        )
    else:
        lines.append("No time is predicted: the rates of this GPU are not known.")
    lines.append(
        f"Each sum includes {machine.overhead / GB:.1f} GB for {'CUDA' if machine.on_gpu else 'Python and libraries'}."
        " ckpt: fits only with gradient_checkpointing, and its row is computed with it."
    )
    return lines


def document_of(plan: Plan, train: Rehearsed) -> dict[str, Any]:
    """Return a plan as JSON values: bytes, seconds and tokens."""
    machine, found = plan.machine, plan.efficiency
    return {
        "command": "plan",
        "predicted": True,
        "machine": {
            "name": machine.name,
            "gpus": machine.gpus,
            "nodes": machine.nodes,
            "usable_bytes": int(machine.usable),
        },
        "parameters": plan.numbers,
        "stored_quantisation": plan.stored,
        "trained_parameters": plan.trained_numbers,
        "pairs": {"rows": train.rows, "tokenized": train.report.rows, "kept": train.report.kept},
        "batches": plan.path,
        "steps_per_epoch": found.steps,
        "pairs_per_step": found.pairs_per_step,
        "micro_batches": found.micro_batches,
        "slowest_over_mean": found.slowest_share,
        "computed_over_sequences": found.computed_share,
        "longest_pair_tokens": found.longest_pair,
        "choices": [choice_values(one) for one in plan.choices],
    }


def choice_values(choice: Choice) -> dict[str, Any]:
    """Return a choice as JSON values."""
    memory = {name: int(value) for name, value in choice.memory._asdict().items()}
    step = choice.step
    return {
        "training": choice.training,
        "sharing": choice.sharing.kind,
        "gradient_checkpointing": choice.checkpointing,
        "is_recipe": choice.is_recipe,
        "fits": choice.fits,
        "bytes": {**memory, "sum": int(choice.memory.total)},
        "max_tokens_per_microbatch": choice.max_tokens,
        "pairs_per_microbatch": choice.pairs if choice.max_tokens is None else None,
        "largest_microbatch_tokens": choice.largest_tokens,
        "step_s": None if step is None else {"from": step.lower_s, "to": step.upper_s, "exchange": step.exchange_s},
        "tokens_per_s": None if step is None else step.tokens_per_s,
    }
