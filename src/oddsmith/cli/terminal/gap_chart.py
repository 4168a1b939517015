"""Draw in text how the log-probabilities of chosen and rejected answers part while a model is trained.

    log-probability a token, in nats         ● chosen   ○ rejected
     -0.9 │○○
          │  ○○○○○     ●●●●●●●●●●●●●●●●●●●●●●●●
          │       ●●○●●░░░░░░░░░░░░░░░░░░░░░░░░
     -2.1 │     ●●   ○○○○░░░░░░░░░░░░░░░░░░░░░░
          │  ●●●         ○○○○░░░░░░░░░░░░░░░░░░
     -3.3 │●●                ○○○○○○○○○○○○○○○○○○
          └────────────────────────────────────
           step 2                            60
    chosen - rejected: -2.31 at step 2, +1.20 at step 60

The shade fills the gap where the chosen answers are the likelier ones. A terminal that is too narrow gets the last line
alone, and one whose encoding lacks the marks gets letters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console, ConsoleOptions
from rich.text import Text
from transformers import TrainerCallback

CHOSEN, REJECTED = "logps/chosen", "logps/rejected"
HEIGHT = 10  # rows of the curves
MAX_COLUMNS, MIN_COLUMNS = 64, 24  # of the curves
LABELS = 8  # columns left of the curves


class Marks(NamedTuple):
    """The characters of a chart."""

    chosen: str
    rejected: str
    gap: str
    side: str
    corner: str
    floor: str


BLOCKS = Marks("●", "○", "░", "│", "└", "─")
LETTERS = Marks("c", "r", ".", "|", "+", "-")
NO_MARK = " "


class GapChart(TrainerCallback):
    """Collects both log-probabilities from the log lines of a run, and draws them; a renderable of rich."""

    only_looks_on = True

    def __init__(self) -> None:
        self._points: list[tuple[int, float, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and CHOSEN in logs and REJECTED in logs:
            self.add(state.global_step, logs[CHOSEN], logs[REJECTED])

    def add(self, step: int, chosen: float, rejected: float) -> None:
        """Take the mean log-probabilities a token at a step, in nats; those that are not finite are left out."""
        if np.isfinite([chosen, rejected]).all():
            self._points.append((step, chosen, rejected))

    def lines(self, width: int, marks: Marks = BLOCKS) -> list[str]:
        """Return the chart in lines of at most ``width`` characters; none before there are two points."""
        if len(self._points) < 2:
            return []
        (first, *low), (last, *high) = self._points[0], self._points[-1]
        gaps = f"chosen - rejected: {low[0] - low[1]:+.2f} at step {first}, {high[0] - high[1]:+.2f} at step {last}"
        columns = min(width - LABELS, MAX_COLUMNS)
        return [*self._drawn(columns, marks), gaps] if columns >= MIN_COLUMNS else [gaps]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        marks = marks_of(console.encoding)
        for line in self.lines(options.max_width, marks):
            yield painted(line, marks)

    def _drawn(self, columns: int, marks: Marks) -> list[str]:
        steps, chosen, rejected = (np.array(series, dtype=float) for series in zip(*self._points, strict=True))
        at = np.linspace(steps[0], steps[-1], columns)
        curves = [np.interp(at, steps, series) for series in (chosen, rejected)]
        low, high = min(map(np.min, curves)), max(map(np.max, curves))
        scale = (HEIGHT - 1) / max(high - low, 1e-6)
        chosen_rows, rejected_rows = (np.rint((high - curve) * scale).astype(int).tolist() for curve in curves)
        rows = [
            "".join(_mark(row, up, down, marks) for up, down in zip(chosen_rows, rejected_rows, strict=True))
            for row in range(HEIGHT)
        ]
        values = {0: high, HEIGHT // 2: high - HEIGHT // 2 / scale, HEIGHT - 1: low}
        names = [f"{values[row]:6.1f}" if row in values else " " * 6 for row in range(HEIGHT)]
        legend = f"{marks.chosen} chosen   {marks.rejected} rejected"
        title = "log-probability a token, in nats"
        head = [f"{title}   {legend}"] if len(title) + len(legend) + 3 <= columns + LABELS else [title, legend]
        ends = f"step {self._points[0][0]}"
        return [
            *head,
            *(f"{name} {marks.side}{row}".rstrip() for name, row in zip(names, rows, strict=True)),
            f"{'':6} {marks.corner}{marks.floor * columns}",
            f"{'':{LABELS}}{ends}{self._points[-1][0]:>{columns - len(ends)}}",
        ]


def marks_of(encoding: str) -> Marks:
    """Return the marks that an encoding has."""
    try:
        "".join(BLOCKS).encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return LETTERS
    return BLOCKS


def painted(line: str, marks: Marks) -> Text:
    """Return a line of the chart with its marks in colour, for a terminal that has colours."""
    styles = {marks.chosen: "green", marks.rejected: "red", marks.gap: "dim green"}
    curve, is_row = line.find(marks.side), marks.side in line[:LABELS]
    if not is_row:
        return Text(line)
    runs: Sequence[tuple[str, str]] = [
        (run := "".join(same), styles.get(run[0], "")) for _, same in groupby(line[curve + 1 :])
    ]
    return Text.assemble(line[: curve + 1], *runs)


def _mark(row: int, chosen: int, rejected: int, marks: Marks) -> str:
    """Return what stands in a cell; rows count from the top, so the smaller one is the likelier one."""
    if row == chosen:
        return marks.chosen
    if row == rejected:
        return marks.rejected
    return marks.gap if chosen < row < rejected else NO_MARK
