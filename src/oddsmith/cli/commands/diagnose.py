"""``oddsmith diagnose``: print what is wrong with a run, the evidence, and what to change. Needs no torch."""

from __future__ import annotations

import math
import sys
import textwrap
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from rich.text import Text

from ... import metrics
from ...diagnose.findings import Verdict, overall
from ..parsing.resolve import Option, resolve_word
from ..terminal.console import say, stdout_console
from ..terminal.outcome import JSON, TRACEBACK, Judged

if TYPE_CHECKING:
    from ...diagnose.findings import Finding
    from ...diagnose.history import History

USAGE = "oddsmith diagnose RUN | trainer_state.json | LOG | events.jsonl | CSV | -"
INTRO = (
    "Reads the metrics of a run and says in plain words what is wrong, how that is known, and what to change. Takes a"
    " run folder of any trainer, trainer_state.json, a console log or a table as it was pasted (TRL, Unsloth, Axolotl,"
    " LLaMA-Factory, ms-swift; notebooks, model cards), our events.jsonl, CSV exports of W&B and TensorBoard, or - for"
    " standard input. Every rule: docs/diagnose.md.",
)
OPTIONS = (
    Option("strict", "switch", "Exit with 3 where the verdict is act, with 4 where it is cannot tell."),
    JSON,
    TRACEBACK,
)
EXIT_CODES = {Verdict.ACT: 3, Verdict.CANNOT_TELL: 4}  # with --strict

MARKS = {
    Verdict.HEALTHY: ("ok", "green"),
    Verdict.CANNOT_TELL: ("?", "bold cyan"),
    Verdict.WATCH: ("watch", "bold yellow"),
    Verdict.ACT: ("act", "bold red"),
}
HEADLINES = {
    Verdict.HEALTHY: "healthy: nothing here asks for a change",
    Verdict.CANNOT_TELL: "cannot tell: too little is known of this run",
    Verdict.WATCH: "watch: worth a look",
    Verdict.ACT: "act: something is wrong",
}
BLOCKS = "▁▂▃▄▅▆▇█"
SPARK_WIDTH = 40


def diagnose(arguments: Sequence[str]) -> Judged:
    """Run ``oddsmith diagnose``; return the findings, with ``--strict`` and exit code 3 if the verdict is act."""
    usage = "oddsmith diagnose RUN (a folder, trainer_state.json or a log)"
    name, given = resolve_word(arguments, OPTIONS, "run", usage)
    from ...diagnose.readers import STANDARD_INPUT, read_history
    from ...diagnose.rules import judge

    if name == STANDARD_INPUT and sys.stdin.isatty():
        say("paste the log, then press Ctrl-D on a line of its own")
    history = read_history(name)
    findings = judge(history)
    verdict = overall(finding.verdict for finding in findings)
    document = {
        "verdict": str(verdict),
        "findings": [finding.to_dict() for finding in findings],
        "read": {
            "unit": history.unit,
            "last": history.last_step,
            "planned": history.setting("max_steps"),
            "log_lines": history.log_lines,
            "evaluations": history.evaluations,
            "lines_skipped": history.skipped,
            "lines_not_understood": history.unread,
            "log_lines_repeated": history.repeated,
        },
    }
    if "json" not in given:
        _show(history, findings, verdict)
    return Judged(document, EXIT_CODES.get(verdict, 0) if "strict" in given else 0)


def _show(history: History, findings: Sequence[Finding], verdict: Verdict) -> None:
    console = stdout_console()
    console.print(Text.assemble((HEADLINES[verdict], MARKS[verdict][1]), f"  ({_extent(history)})"))
    for finding in findings:
        mark, style = MARKS[finding.verdict]
        where = f"  from {history.at(finding.step)}" if finding.step is not None else ""
        console.print()
        console.print(Text.assemble((f"{mark:>5}  ", style), (finding.rule.replace("_", " "), "bold"), where))
        for label, text in (
            ("", f"{finding.metric}: {finding.evidence}"),
            ("", finding.meaning),
            ("-> ", finding.change),
        ):
            if text:
                _paragraph(console, label, text)
    console.print()
    with suppress(UnicodeEncodeError, LookupError):  # a terminal whose encoding lacks the blocks
        BLOCKS.encode(console.encoding)
        for line in sparklines(history):
            console.print(Text(line), soft_wrap=True)
    for note in _notes(history):
        console.print(Text(f"\n{note}", style="dim"))


def _extent(history: History) -> str:
    """Word how much of the run was read: ``train.log, 40 of 600 steps, 4 log lines, 1 evaluation``."""
    planned = f" of {history.steps_planned}" if history.steps_planned > history.last_step else ""
    parts = [history.source, f"{history.last_step}{planned} {history.unit}"]
    counts = [(history.log_lines, "log line"), (history.evaluations, "evaluation")]
    parts += [f"{count} {what}{'s' * (count != 1)}" for count, what in counts if count and f"{what}s" != history.unit]
    return ", ".join(parts)


def _notes(history: History) -> list[str]:
    """Say what of the source does not enter the diagnosis."""
    notes = []
    if history.skipped:
        notes.append(f"{history.skipped} lines without metrics were skipped")
    if history.unread:
        notes.append(f"{history.unread} of them look as if they had some: {history.unread_example[:200]}")
    if history.repeated:
        notes.append(f"{history.repeated} log lines were left out: a later attempt in the source repeats their steps")
    return notes


def _paragraph(console: Any, label: str, text: str) -> None:
    indent = " " * 7
    width = min(console.width, 110)
    wrapped = textwrap.fill(
        text, width, initial_indent=indent + label, subsequent_indent=indent + " " * len(label), break_long_words=False
    )
    console.print(Text(wrapped), soft_wrap=True)


def sparklines(history: History) -> list[str]:
    """Draw what the monitor's charts draw, each metric with two points or more: its name, its curve, first and last."""
    from ...diagnose.names import in_set
    from ...diagnose.statistics import blocks

    charted = [metric.name for chart in metrics.CHARTS for metric in metrics.drawn_in(chart)]
    drawn_series = [(name, history.get(name)) for name in charted]
    for held_out, found in history.held_out.items():
        shown = [metric.name for metric in metrics.shown_in(metrics.Place.CURVES) if metric.name in found]
        drawn_series += [(in_set(held_out, name), found[name]) for name in shown]
    lines = []
    for name, logged in drawn_series:
        series = logged.finite()
        if len(series) < 2:
            continue
        values = blocks(series, SPARK_WIDTH).values
        low, high = float(values.min()), float(values.max())
        scale = (len(BLOCKS) - 1) / (high - low) if high > low and math.isfinite(high - low) else 0.0
        drawn = "".join(BLOCKS[round((value - low) * scale)] for value in values.tolist())
        lines.append(f"{name:>23}  {drawn:<{SPARK_WIDTH}}  {series.values[0]:.3g} -> {series.values[-1]:.3g}")
    return lines
