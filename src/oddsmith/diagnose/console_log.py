"""Read console logs as they are pasted: every logged metric counts, and everything else is skipped.

| looks like | printed by |
|---|---|
| ``{'loss': 0.80, 'grad_norm': nan, ...}``, in one line or several | transformers: TRL, Axolotl, ms-swift |
| ``{"current_steps": 10, "total_steps": 37, ...}`` | LLaMA-Factory's ``trainer_log.jsonl`` |
| ``Step  Training Loss  rewards / chosen ...``, then rows | Unsloth and other notebooks; tabs, spaces or ``|`` |
| ``step 120/1500  8%  loss 2.314  nll 2.201 ...`` | ours |

The step is taken from the line (``step``, ``current_steps``, ``global_step/max_steps``), else from the progress bar
before it (``12%|#2  | 10/80 [``), else log lines are counted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..metrics import Place, shown_in
from .history import History, HistoryBuilder
from .names import held_out_name, known_name

# Characters. A start event with the numbers of 100,000 cut rows has 700,000.
MAX_LINE = 1_000_000
MAX_RECORD = 20_000  # of one logged dict
MAX_ROW = 4_000  # of a table, or of our own line

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[@-_])")
_NUMBER = r"[-+]?(?:nan|inf(?:inity)?|\d+\.?\d*(?:e[-+]?\d+)?|\.\d+(?:e[-+]?\d+)?)"
_PAIR = re.compile(rf"""(['"])([^'"\n]{{1,80}})\1\s*:\s*(['"]?)({_NUMBER})\3(?=\s*[,}}\]])""", re.IGNORECASE)
_BEGIN = re.compile(r"\{\s*(?:['\"]|$)")  # of a logged dict, unlike a brace of code
_FRACTION = re.compile(r"""['"]global_step/max_steps['"]\s*:\s*['"](\d+)/(\d+)['"]""")
_BAR = re.compile(r"(?:^|\r)\s*\d+%\|[^|]*\|\s*(\d+)/(\d+)\s*\[")  # a bar with a name is that of data processing
_OURS = re.compile(r"\bstep (\d+)(?:/(\d+))?\s.*?\bloss [-\d.]")
_OURS_NAMES = {metric.label: metric.name for metric in shown_in(Place.PROGRESS) if metric.label}
_OURS_FIGURES = re.compile(rf"\b({'|'.join(_OURS_NAMES)}) ({_NUMBER})(%?)", re.IGNORECASE)
STEP_NAMES = ("step", "current_steps", "global_step", "train/global_step", "_step")
TOTAL_NAMES = ("total_steps", "max_steps")


def lines_of(path: Path) -> Iterator[str]:
    """Yield the lines of a text of any size that are not blank, without colours.

    A carriage return ends a line too, because progress bars use it. Of a line longer than ``MAX_LINE`` only the
    beginning is read. Bytes that are not UTF-8 are replaced.
    """
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        while line := file.readline(MAX_LINE):
            if not line.endswith("\n"):
                while (rest := file.readline(MAX_LINE)) and not rest.endswith("\n"):
                    pass
            for part in _ESCAPES.sub("", line.rstrip("\n")).split("\r"):
                if part.strip():
                    yield part


def history_of_lines(lines: Iterable[str], source: str = "") -> History:
    """Return the history in the lines of a log; empty if no line was readable."""
    reader = _ConsoleReader(source)
    for line in lines:
        reader.read(line[:MAX_LINE])
    return reader.builder.build()


def read_json_lines(path: Path) -> History:
    """Return the history in a file with a JSON object a line; empty if no line was readable."""
    reader = _ConsoleReader(str(path))
    for line in lines_of(path):
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            values = None
        if isinstance(values, dict):
            reader.add(values)
        else:
            reader.builder.history.skipped += 1
    return reader.builder.build()


class _ConsoleReader:
    """Reads a log line by line; keeps the last progress bar, the last table head, and an incomplete dict."""

    def __init__(self, source: str):
        self.builder = HistoryBuilder(source)
        self._bar: int | None = None
        self._last_step, self._logged = 0, 0
        self._open = ""
        self._columns: list[str] = []

    def read(self, line: str) -> None:
        """Read one line."""
        for done, total in _BAR.findall(line):
            if int(total) == self.builder.history.settings.setdefault("max_steps", int(total)):  # else an evaluation's
                self._bar = int(done)
        if self._open or "{" in line:
            self._read_records(line)
        elif ours := _OURS.search(line := line[:MAX_ROW]):
            self._read_ours(line, *ours.groups())
        elif not self._read_table(line):
            self.builder.history.skipped += 1

    def add(self, values: dict[str, Any]) -> None:
        """Add the metrics of one logged dict at its step."""
        for name in TOTAL_NAMES:
            if name in values and (total := _whole(values[name])) is not None:
                self.builder.history.settings["max_steps"] = total
        self.builder.add(self._step_of(values), values)

    def _step_of(self, values: dict[str, Any]) -> int:
        """Return the step of a dict. An evaluation without one belongs to the step before it."""
        for name in STEP_NAMES:
            if name in values and (step := _whole(values[name])) is not None:
                self._last_step = step
                return step
        if self._bar is not None:
            self._last_step = self._bar
        elif any(known_name(name) for name in values):
            self._logged += 1
            self._last_step = self._logged
            self.builder.history.steps_are_lines = True
        return self._last_step

    def _read_records(self, line: str) -> None:
        """Read the dicts in a line, and keep an incomplete one for the next line."""
        text = f"{self._open}\n{line}" if self._open else line[line.index("{") :]
        self._open = ""
        *records, rest = re.split(r"(?<=\})", text)
        if (begin := _BEGIN.search(rest)) is not None and len(rest) < MAX_RECORD:
            self._open = rest[begin.start() :]
        for record in records:
            values: dict[str, Any] = {name: number for _, name, _, number in _PAIR.findall(record)}
            if (fraction := _FRACTION.search(record)) is not None:
                values["step"], values["total_steps"] = fraction.groups()
            if any(known_name(name) or held_out_name(name) for name in values):
                self.add(values)

    def _read_ours(self, line: str, step: str, total: str | None) -> None:
        if total:
            self.builder.history.settings["max_steps"] = int(total)
        figures = {
            _OURS_NAMES[name.lower()]: float(number) / (100 if percent else 1)
            for name, number, percent in _OURS_FIGURES.findall(line)
        }
        self.builder.add(int(step), figures)

    def _read_table(self, line: str) -> bool:
        """Read a head of columns, or a row under one; return whether it was either."""
        cells = _cells(line)
        if len(cells) > 1 and cells[0].lower() in ("step", "steps"):
            self._columns = cells
            return True
        if not self._columns or len(cells) < 2 or (step := _whole(cells[0])) is None:
            return False
        return self.builder.add(step, dict(zip(self._columns[1:], cells[1:], strict=False)))


def _cells(line: str) -> list[str]:
    """Return the cells of a line of a table: between tabs, bars, or at least two spaces."""
    line = line.strip().lstrip("#").strip()
    for separator in ("\t", "|"):
        if separator in line:
            return [cell.strip() for cell in line.strip("|").split(separator)]
    return re.split(r"\s{2,}", line)


def _whole(text: Any) -> int | None:
    """Return a whole number of at most twelve digits, also one written as text."""
    text = str(text)
    return int(float(text)) if re.fullmatch(r"\d{1,12}(\.0*)?", text) else None
