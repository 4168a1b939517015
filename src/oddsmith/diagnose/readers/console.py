"""Reader of console logs, as they are pasted: whatever looks like logged metrics counts, all else is passed over.

| looks like | printed by |
|---|---|
| ``{'loss': 0.80, 'grad_norm': nan, ...}``, in one line or several | transformers: TRL, Axolotl, ms-swift |
| ``{"current_steps": 10, "total_steps": 37, ...}`` | LLaMA-Factory's ``trainer_log.jsonl`` |
| ``Step  Training Loss  rewards / chosen ...``, then rows | Unsloth and other notebooks; tabs, spaces or ``|`` |
| ``step 120/1500  8%  loss 2.314  nll 2.201 ...`` | ours |

A step is what the line says (``step``, ``current_steps``, ``global_step/max_steps``), else what the progress bar before
it says (``12%|#2  | 10/80 [``), else the number of the log line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...metrics import Place, shown_in
from ..history import History, HistoryBuilder
from ..names import held_out_name, known_name
from .lines import LONGEST_LINE, lines_of

LONGEST_RECORD = 20_000  # characters of one logged dict
LONGEST_ROW = 4_000  # of a table, or of our own line
_NUMBER = r"[-+]?(?:nan|inf(?:inity)?|\d+\.?\d*(?:e[-+]?\d+)?|\.\d+(?:e[-+]?\d+)?)"
_PAIR = re.compile(rf"""(['"])([^'"\n]{{1,80}})\1\s*:\s*(['"]?)({_NUMBER})\3(?=\s*[,}}\]])""", re.IGNORECASE)
_BEGIN = re.compile(r"\{\s*(?:['\"]|$)")  # of a logged dict, unlike a brace of code
_FRACTION = re.compile(r"""['"]global_step/max_steps['"]\s*:\s*['"](\d+)/(\d+)['"]""")
_BAR = re.compile(r"(?:^|\r)\s*\d+%\|[^|]*\|\s*(\d+)/(\d+)\s*\[")  # one with a name before it is of the data's
_OURS = re.compile(r"\bstep (\d+)(?:/(\d+))?\s.*?\bloss [-\d.]")
_OURS_NAMES = {metric.label: metric.name for metric in shown_in(Place.PROGRESS) if metric.label}
_OURS_FIGURES = re.compile(rf"\b({'|'.join(_OURS_NAMES)}) ({_NUMBER})(%?)", re.IGNORECASE)
STEP_NAMES = ("step", "current_steps", "global_step", "train/global_step", "_step")
TOTAL_NAMES = ("total_steps", "max_steps")


def read_console(path: Path) -> History:
    """The history that a log holds.

    Args:
        path: The file.

    Returns:
        The history; empty where no line was readable.
    """
    return history_of_lines(lines_of(path), str(path))


def history_of_lines(lines: Iterable[str], source: str = "") -> History:
    """The history that lines of a log hold.

    Args:
        lines: The lines.
        source: Where they are from.

    Returns:
        The history.
    """
    reader = _ConsoleReader(source)
    for line in lines:
        reader.read(line[:LONGEST_LINE])
    return reader.builder.build()


class _ConsoleReader:
    """Walks over a log; knows the last progress bar, the last table head, and a dict that is still open."""

    def __init__(self, source: str):
        self.builder = HistoryBuilder(source)
        self._bar: int | None = None
        self._last_step, self._logged = 0, 0
        self._open = ""
        self._columns: list[str] = []

    def read(self, line: str) -> None:
        for done, total in _BAR.findall(line):
            if int(total) == self.builder.history.settings.setdefault("max_steps", int(total)):  # else an evaluation's
                self._bar = int(done)
        if self._open or "{" in line:
            self._read_records(line)
        elif _OURS.search(line := line[:LONGEST_ROW]):
            self._read_ours(line)
        elif not self._read_table(line):
            self.builder.history.skipped += 1

    def _read_records(self, line: str) -> None:
        """Dicts in a line; one that does not end in it goes on in the next."""
        text = f"{self._open}\n{line}" if self._open else line[line.index("{") :]
        self._open = ""
        *records, rest = re.split(r"(?<=\})", text)
        if (begin := _BEGIN.search(rest)) is not None and len(rest) < LONGEST_RECORD:
            self._open = rest[begin.start() :]
        for record in records:
            self._read_record(record)

    def _read_record(self, record: str) -> None:
        values: dict[str, Any] = {name: number for _, name, _, number in _PAIR.findall(record)}
        if (fraction := _FRACTION.search(record)) is not None:
            values["step"], values["total_steps"] = fraction.groups()
        if not any(known_name(name) or held_out_name(name) for name in values):
            return
        self._take_total(values)
        self.builder.add(self._step_of(values), values)

    def _take_total(self, values: dict[str, Any]) -> None:
        for name in TOTAL_NAMES:
            if name in values and (total := _whole(values[name])) is not None:
                self.builder.history.settings["max_steps"] = total

    def _step_of(self, values: dict[str, Any]) -> int:
        """The step of a record. An evaluation that does not say belongs to the step before it."""
        for name in STEP_NAMES:
            if name in values and (step := _whole(values[name])) is not None:
                self._last_step = step
                return step
        trains = any(known_name(name) for name in values)
        if self._bar is not None:
            self._last_step = self._bar
        elif trains:
            self._logged += 1
            self._last_step = self._logged
            self.builder.history.steps_are_lines = True
        return self._last_step

    def _read_ours(self, line: str) -> None:
        step, total = _OURS.search(line).groups()  # type: ignore[union-attr]
        if total:
            self.builder.history.settings["max_steps"] = int(total)
        figures = {
            _OURS_NAMES[name.lower()]: float(number) / (100 if percent else 1)
            for name, number, percent in _OURS_FIGURES.findall(line)
        }
        self.builder.add(int(step), figures)

    def _read_table(self, line: str) -> bool:
        """A head of columns, or a row under one."""
        cells = _cells(line)
        if len(cells) > 1 and cells[0].lower() in ("step", "steps"):
            self._columns = cells
            return True
        if not self._columns or len(cells) < 2 or (step := _whole(cells[0])) is None:
            return False
        return self.builder.add(step, dict(zip(self._columns[1:], cells[1:], strict=False)))


def _cells(line: str) -> list[str]:
    """The cells of a line of a table: between tabs, bars, or at least two spaces."""
    line = line.strip().lstrip("#").strip()
    for separator in ("\t", "|"):
        if separator in line:
            return [cell.strip() for cell in line.strip("|").split(separator)]
    return re.split(r"\s{2,}", line)


def _whole(text: Any) -> int | None:
    """A whole number of at most twelve digits."""
    text = str(text)
    return int(float(text)) if re.fullmatch(r"\d{1,12}(\.0*)?", text) else None


def read_json_lines(path: Path) -> History:
    """The history of a file with a JSON object a line, such as LLaMA-Factory's ``trainer_log.jsonl``.

    Args:
        path: The file.

    Returns:
        The history; empty where no line was readable.
    """
    reader = _ConsoleReader(str(path))
    for line in lines_of(path):
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            reader.builder.history.skipped += 1
            continue
        reader._take_total(values)
        reader.builder.add(reader._step_of(values), values)
    return reader.builder.build()
