"""Show what ``oddsmith advise`` found: facts, the ways to train, the settings; as text, as a recipe, as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ... import __version__
from ...system.secrets import without_secrets
from ...system.words import counted
from ..commands.train.run_folder import shareable, to_yaml
from .console import show_line
from .counting import clock
from .plan_table import choice_values, name_of

if TYPE_CHECKING:
    from ...data.checks.survey import Survey
    from ...planning.advice import Advised, Lengths
    from ...planning.recipe import Choice, Plan
    from ..commands.train.rehearsal import Rehearsed
    from ..parsing.config_file import Setting

WIDTH = 100
GB = 1e9
# Faults that are named, if there are any; `oddsmith data check` says more.
SHOWN_CHECKS = 3


class Advice(NamedTuple):
    """All that is told and written."""

    model: str
    data: str
    train: Rehearsed
    rows: int  # that the run will keep, held-out ones among them
    survey: Survey
    lengths: Lengths
    max_length: int
    plan: Plan
    ways: Mapping[str, Choice]
    per_device: int  # pairs of a process in a micro-batch, where they fit
    training: str | None  # of usual.py; None: nothing fits
    settings: Sequence[Advised]
    given: Mapping[str, Setting]
    output: Path
    next_command: str


def print_advice(found: Advice) -> None:
    """Print the advice on stdout, in lines of 100 characters."""
    for name, text in _facts(found).items():
        for number, line in enumerate(textwrap.wrap(text, WIDTH - 11, break_on_hyphens=False)):
            show_line(f"{name if number == 0 else '':<10} {line}")
    show_line("")
    show_line(f"{'':<28}{'GB a rank':>10}{'of':>7}{'s/step':>8}")
    for training, choice in found.ways.items():
        show_line(_row(found, training, choice))
    show_line("")
    if found.training is None:
        show_line("Nothing fits. Take more GPUs or larger ones (--gpu, --gpus), or shorter pairs (--max-length).")
        return
    texts = [f"{one.setting}: {to_yaml(one.value)}" for one in found.settings]
    column = max(map(len, texts), default=0) + 2
    for text, one in zip(texts, found.settings, strict=True):
        for number, line in enumerate(textwrap.wrap(one.why, WIDTH - column, break_on_hyphens=False)):
            show_line(f"{'' if number else text:<{column}}{line}")
    show_line("")
    show_line(f"{_time(found)}")
    show_line(f"{found.output} is written. Next: {found.next_command}")


def recipe_text(found: Advice) -> str:
    """Return the recipe: YAML, each setting under its reasons."""
    lines = [
        f"# By `oddsmith advise` {__version__}, for {found.plan.machine.name}; start it with: {found.next_command}"
    ]
    lines += [f"# {name}: {text}" for name, text in _facts(found).items() if name in ("pairs", "lengths", "model")]
    lines += [f"# {_memory(found)}", f"# {_time(found)}", ""]
    for name in ("model_name_or_path", "dataset_name"):
        lines += [f"{name}: {to_yaml({'model_name_or_path': found.model, 'dataset_name': found.data}[name])}"]
    for name, setting in found.given.items():
        line, remark = shareable(name, setting.value)
        lines += ["", f"# given: {'; '.join(filter(None, [setting.where, remark]))}", line]
    for one in found.settings:
        reasons = textwrap.wrap(_in_a_line(one.why), WIDTH - 2, break_on_hyphens=False)
        reasons += textwrap.wrap(f"Source: {one.source}", WIDTH - 2, break_on_hyphens=False) if one.source else []
        lines += ["", *(f"# {line}" for line in reasons), f"{one.setting}: {to_yaml(one.value)}"]
    return "".join(f"{_in_a_line(line) if line.startswith('#') else line}\n" for line in lines)


def document_of(found: Advice) -> dict[str, Any]:
    """Return the advice as JSON values: bytes, seconds and tokens."""
    machine, epochs = found.plan.machine, _epochs(found)
    time_s = _time_s(found)
    return {
        "command": "advise",
        "model": found.model,
        "parameters": found.plan.numbers,
        "stored_quantisation": found.plan.stored,
        "dataset": found.data,
        "pairs": {"rows": found.train.rows, "kept": found.rows, "format": found.train.report.format},
        "faults": {fault.check: fault.count for fault in found.survey.findings if fault.verdict != "pass"},
        "tokens": {
            "quantiles": {str(share): length for share, length in found.lengths.quantiles.items()},
            "positions": found.lengths.positions,
            "max_length": found.max_length,
            "cut_share": found.lengths.cut_by(found.max_length) / len(found.lengths.tokens),
        },
        "machine": {"name": machine.name, "gpus": machine.gpus, "usable_bytes": int(machine.usable)},
        "ways": {training: choice_values(choice) for training, choice in found.ways.items()},
        "training": found.training,
        "settings": [one._asdict() for one in found.settings],
        "given": {name: without_secrets(name, setting.value)[0] for name, setting in found.given.items()},
        "epochs": epochs,
        "time_s": None if time_s is None else {"from": time_s[0], "to": time_s[1]},
        "output": None if found.training is None else str(found.output),
        "next": None if found.training is None else found.next_command,
    }


def _facts(found: Advice) -> dict[str, str]:
    report, machine, lengths = found.train.report, found.plan.machine, found.lengths
    sample = "" if found.train.is_whole else f" of a sample of {report.rows:,}"
    share = {0.5: "half have at most", 0.9: "90%", 0.99: "99%", 1.0: "the longest"}
    stored = f", stored quantised ({found.plan.stored})" if found.plan.stored else ""
    where = machine.name if machine.ranks == 1 else f"{machine.ranks} x {machine.name}"
    return {
        "pairs": f"{counted(found.train.rows or 0, 'row')} ({report.format}), {report.kept:,}{sample} kept;"
        f" {'; '.join(_faults(found)) or 'no fault found'}",
        "lengths": ", ".join(f"{share[part]} {length:,}" for part, length in lengths.quantiles.items())
        + f" tokens; max_length {found.max_length:,} cuts {lengths.cut_by(found.max_length) / len(lengths.tokens):.1%}",
        "model": f"{found.plan.numbers / 1e6:,.1f} M parameters{stored}; {found.plan.path}",
        "machine": f"{where}; {machine.usable / GB:,.1f} GB for a {'GPU' if machine.on_gpu else 'process'}",
    }


def _faults(found: Advice) -> Iterator[str]:
    faulty = [one for one in found.survey.findings if one.verdict != "pass"]
    for one in faulty[:SHOWN_CHECKS]:
        yield f"{one.check}: {one.count:,}" if one.count else one.check
    if faulty:
        of = f" of the first {found.survey.rows:,}" if found.survey.rows < (found.train.rows or 0) else ""
        more = f"{len(faulty) - SHOWN_CHECKS} more{of}; " if len(faulty) > SHOWN_CHECKS else f"all{of}; " if of else ""
        yield f"{more}`oddsmith data check` says what to do"


def _row(found: Advice, training: str, choice: Choice) -> str:
    usable = found.plan.machine.usable / GB
    step = "-" if choice.step is None else f"{choice.step.middle_s:.2g}"
    fits = "fits" if choice.fits else "does not fit"
    ways = ["gradient_checkpointing"] if choice.checkpointing else []
    ways += [f"{counted(choice.pairs, 'pair')} at once"] if choice.pairs < found.per_device else []
    how = f"{fits}, with {' and '.join(ways)}" if ways else fits
    mark = ">" if training == found.training else " "
    return f"{mark} {name_of(choice):<26}{choice.memory.total / GB:>10.1f}{usable:>7.1f}{step:>8}  {how}"


def _memory(found: Advice) -> str:
    choice = found.ways[found.training] if found.training else None
    total = choice.memory.total / GB if choice else 0.0
    return f"memory: {total:,.1f} of {found.plan.machine.usable / GB:,.1f} GB, predicted (docs/plan.md)"


def _epochs(found: Advice) -> float | None:
    values = {one.setting: one.value for one in found.settings} | {n: s.value for n, s in found.given.items()}
    return None if "max_steps" in values else values.get("num_train_epochs")


def _time_s(found: Advice) -> tuple[float, float] | None:
    step = found.ways[found.training].step if found.training else None
    epochs = _epochs(found)
    if step is None or epochs is None:
        return None
    steps = found.plan.efficiency.steps * epochs
    return step.lower_s * steps, step.upper_s * steps


def _time(found: Advice) -> str:
    time_s = _time_s(found)
    if time_s is None:
        return "time: not known: the rates of this GPU are not, or the steps are given"
    source = "data sheets, not measured" if found.plan.machine.on_gpu else "a product and a copy, timed here"
    times = f"{clock(time_s[0])} to {clock(time_s[1])}"
    return f"time: {times} for {_epochs(found)} epochs, by {source}; evaluations come on top"


def _in_a_line(text: str) -> str:
    return " ".join(text.split())
