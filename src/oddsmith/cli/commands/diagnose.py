"""``oddsmith diagnose``: print what is wrong with a run, the evidence, and what to change. Needs no torch."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from rich.text import Text

from ..parsing.resolve import Option, resolve_word
from ..terminal.console import stdout_console
from ..terminal.outcome import JSON, TRACEBACK, Judged

if TYPE_CHECKING:
    from ...diagnose.findings import Finding
    from ...diagnose.history import History

USAGE = "oddsmith diagnose RUN | trainer_state.json | LOG | events.jsonl | CSV"
INTRO = (
    "Reads the metrics of a run and says in plain words what is wrong, how that is known, and what to change. Takes a"
    " run folder of any trainer, trainer_state.json, a pasted console log (TRL, Unsloth, Axolotl, LLaMA-Factory), our"
    " events.jsonl, or CSV exports of W&B and TensorBoard. Every rule: docs/diagnose.md.",
)
OPTIONS = (Option("strict", "switch", "Exit with 3 where the verdict is act."), JSON, TRACEBACK)
ACT_EXIT_CODE = 3

MARKS = {"healthy": ("ok", "green"), "watch": ("watch", "bold yellow"), "act": ("act", "bold red")}
HEADLINES = {
    "healthy": "healthy: nothing here asks for a change",
    "watch": "watch: nothing is broken yet",
    "act": "act: something is wrong",
}
# The metrics that are drawn, if they were logged.
DRAWN = (
    *("loss", "nll_loss", "log_odds_chosen", "rewards/accuracies"),
    *("logps/chosen", "logps/rejected", "grad_norm", "learning_rate"),
)
DRAWN_HELD_OUT = ("nll_loss", "rewards/accuracies")
BLOCKS = "▁▂▃▄▅▆▇█"
SPARK_WIDTH = 40


def diagnose(arguments: Sequence[str]) -> Judged:
    """Run ``oddsmith diagnose``; return the findings, with ``--strict`` and exit code 3 if the verdict is act."""
    usage = "oddsmith diagnose RUN (a folder, trainer_state.json or a log)"
    name, given = resolve_word(arguments, OPTIONS, "run", usage)
    from ...diagnose.findings import Verdict, overall
    from ...diagnose.readers import read_history
    from ...diagnose.rules import judge

    history = read_history(name)
    findings = judge(history)
    verdict = overall(findings)
    document = {"verdict": str(verdict), "findings": [finding.to_dict() for finding in findings]}
    if "json" not in given:
        _show(history, findings, str(verdict))
    return Judged(document, ACT_EXIT_CODE if "strict" in given and verdict is Verdict.ACT else 0)


def _show(history: History, findings: Sequence[Finding], verdict: str) -> None:
    console = stdout_console()
    steps = "log lines" if history.steps_are_lines else "steps"
    planned = f" of {history.steps_planned}" if history.steps_planned > history.last_step else ""
    console.print(
        Text.assemble(
            (HEADLINES[verdict], MARKS[verdict][1]), f"  ({history.source}, {history.last_step}{planned} {steps})"
        )
    )
    for finding in findings:
        mark, style = MARKS[str(finding.verdict)]
        where = f"  from step {finding.step}" if finding.step is not None else ""
        console.print()
        console.print(Text.assemble((f"{mark:>5}  ", style), (finding.rule.replace("_", " "), "bold"), where))
        for label, text in (
            ("", f"{finding.metric}: {finding.evidence}"),
            ("", finding.meaning),
            ("-> ", finding.change),
        ):
            if text:
                _paragraph(console, label, text)
    if not findings:
        console.print("       no rule had enough values to judge")
    console.print()
    with suppress(UnicodeEncodeError, LookupError):  # a terminal whose encoding lacks the blocks
        BLOCKS.encode(console.encoding)
        for line in sparklines(history):
            console.print(Text(line), soft_wrap=True)
    if history.skipped:
        console.print(Text(f"\n{history.skipped} lines without metrics were skipped", style="dim"))


def _paragraph(console: Any, label: str, text: str) -> None:
    indent = " " * 7
    width = min(console.width, 110)
    wrapped = textwrap.fill(
        text, width, initial_indent=indent + label, subsequent_indent=indent + " " * len(label), break_long_words=False
    )
    console.print(Text(wrapped), soft_wrap=True)


def sparklines(history: History) -> list[str]:
    """Draw each metric with two points or more in a line: its name, its curve, its first and last value."""
    from ...diagnose.statistics import blocks

    lines = []
    drawn_series = [(name, history.get(name)) for name in DRAWN]
    for prefix, found in history.held_out.items():
        label = f"eval_{prefix}_" if prefix else "eval_"
        drawn_series += [(label + name, found[name]) for name in DRAWN_HELD_OUT if name in found]
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
