"""Read a log or a table as it was saved or pasted: what is known counts, everything else is skipped, and said.

text.py         file -> lines, without colours and carriage returns
records.py      text -> record: names that we know, with a number each
tables.py       head and rows -> records
steps.py        records and progress bars -> the optimizer step of each record
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from .history import EPOCH, History, HistoryBuilder, as_number
from .names import TRAIN_LOSS, canonical
from .records import Pair, Record, record_of, record_of_pairs
from .steps import place_records
from .tables import Table, is_rule, looks_like_row, table_of
from .text import MAX_LINE

MAX_RECORD = 20_000  # characters of a dict over several lines
MAX_TEXT = 4_000  # of a line without a dict
MAX_BARS = 20  # of different lengths that are remembered

# tqdm's, with what it names before and after it: "Map: 10%|#  | 10/100 [00:01<00:09, 9.5 examples/s, loss=1.2]"
_BAR = re.compile(r"\d{1,3}%\|[^|]{0,500}\|\s{0,9}(\d{1,12})/(\d{1,12})\s{0,9}\[([^\]]{0,500})\]?")
_BAR_OF_EPOCH = re.compile(r"\bepoch\W{0,9}(\d{1,9})\D{0,40}$", re.IGNORECASE)
_UNIT = re.compile(r"([a-z]{1,20})/s\b|\bs/([a-z]{1,20})", re.IGNORECASE)
_STEP_UNITS = frozenset(["it", "iter", "step", "steps", "batch", "batches", "update", "updates", "opt"])
# Of a notebook: "[ 60/120 00:30 < 00:31, 1.9 it/s, Epoch 0.50/1]"
_NOTEBOOK_BAR = re.compile(
    r"\[\s{0,9}(\d{1,12})/(\d{1,12})\s{1,9}\d[\d:]{1,9}[^\]]{0,60}Epoch\s{1,9}[\d.]{1,12}/(\d{1,9})"
)
# ms-swift: "PeftModelForCausalLM: 1548.3308M Params (4.6155M Trainable [0.2981%])"
_PARAMETERS = re.compile(r"(\d{1,9}\.?\d{0,9})M Params \((\d{1,9}\.?\d{0,9})M Trainable")
_ANOTHER = re.compile(r"""[^}]*\{['"]""")  # a dict begins before the end of the one above
_BRACE = re.compile(r"[{}]")
_LIST_ITEM = re.compile(r"\s*[-*]\s+[^:]*:\s*\S+\s*$")  # of a model card: its results and hyperparameters
# A decimal number soon after the word.
_LOOKS_LIKE_METRIC = re.compile(r"(?<!train_)(?:loss|rewards?/)[^\n.\d]{0,30}\d*[.,]\d", re.IGNORECASE)


def history_of_lines(lines: Iterable[str], value: str | None = None) -> History:
    """Return the history in the lines of a log; empty if no line was readable.

    ``value`` is the metric of the column "Value" in TensorBoard's tables.
    """
    reader = LogReader(value)
    for line in lines:
        reader.read(line[:MAX_LINE])
    return reader.history()


class LogReader:
    """Reads a log line by line; keeps the last progress bars, the last head of a table, and an incomplete dict."""

    def __init__(self, value: str | None = None):
        self.records: list[Record] = []
        self.facts: dict[str, float] = {}
        self.skipped, self.unread, self.unread_example = 0, 0, ""
        self._value = value
        self._bars: dict[int, int] = {}  # steps in all -> steps done
        self._first_epoch: int | None = None  # of bars that begin anew with each epoch
        self._table: Table | None = None
        self._open = ""

    # ---- Lines

    def read(self, line: str) -> None:
        """Read one line."""
        if "%|" in line:
            self._read_with_bars(line)
            return
        if not (self._read_words(line) or is_rule(line)):
            self._skip(line)

    def _read_words(self, line: str) -> bool:
        """Read a line without progress bars; return whether it says anything."""
        match = None
        if "Epoch " in line and (match := _NOTEBOOK_BAR.search(line)) is not None:
            self._see_bar(int(match[1]), int(match[2]))
            self.facts |= {"max_steps": float(match[2]), "epochs": float(match[3])}
        elif "M Params (" in line and (match := _PARAMETERS.search(line)) is not None:
            self.facts |= {"parameters": 1e6 * float(match[1]), "trainable_parameters": 1e6 * float(match[2])}
        if self._open or "{" in line:
            return self._read_braces(line) or match is not None
        return self._read_row(line) or self._read_text(line[:MAX_TEXT]) or match is not None

    def _skip(self, line: str) -> None:
        self.skipped += 1
        line = line[:MAX_TEXT]
        if _LOOKS_LIKE_METRIC.search(line) or (self._table is not None and looks_like_row(line)):
            self._note_unread(line)

    def _note_unread(self, line: str) -> None:
        self.unread += 1
        self.unread_example = self.unread_example or line.strip()

    def _read_row(self, line: str) -> bool:
        """Read the head of a table, or a row of the one above; return whether it was either."""
        if self._table is not None and (record := self._table.row(line)) is not None:
            self._add(record)
            return True
        if (table := table_of(line, self._value)) is not None:
            self._table = table
        return table is not None

    def _read_text(self, line: str) -> bool:
        """Read names and numbers without braces."""
        record = record_of(line)
        if record.metrics and _LIST_ITEM.match(line):
            return True  # they are those of the last row of the card's table
        if record.metrics and not any("loss" in name for name in record.metrics) and _LOOKS_LIKE_METRIC.search(line):
            self._note_unread(line)  # only a part of it was understood
        return self._add(record)

    def _read_braces(self, line: str) -> bool:
        """Read the dicts of a line, with the text around them, and keep an incomplete one for the next line."""
        if self._open and (_ANOTHER.match(line) or not re.search(r"""['"}\]]""", line)):
            self._close()
        text, self._open = self._open + line, ""
        groups, rest = _balanced(text) if "}" in text else ([], text)
        if re.search(r"\{\s*(?:['\"]|$)", rest) and len(rest) < MAX_RECORD:
            self._open = rest
        elif rest.strip():
            groups.append([rest[:MAX_TEXT]])
        is_read = bool(self._open)
        for parts in groups:
            record = Record()
            for part in parts:
                record.merge(record_of(part))
            is_read |= self._add(record)
        return is_read

    def _close(self) -> None:
        """Read a dict whose end is missing; its last number may have been cut."""
        text, self._open = self._open, ""
        self._add(record_of(text[: text.rfind(",") + 1]))

    def add(self, values: Mapping[str, Any]) -> None:
        """Add the names and numbers of an object."""
        named = ((canonical(str(raw)), as_number(value)) for raw, value in values.items())
        self._add(record_of_pairs(Pair(name, number) for name, number in named if name and number is not None))

    def _add(self, record: Record) -> bool:
        """Keep a record, or what a line says of the whole run; return whether it says anything."""
        self.facts |= record.facts
        if record.is_summary:
            if (epochs := record.values.get(EPOCH, 0.0)) > 0:
                self.facts["epochs"] = epochs
            return True
        if record.metrics:
            if EPOCH in record.values and self.records and record.says_as(self.records[-1]):
                return True  # another process printed it, too
            record.before = dict(self._bars)
            self.records.append(record)
        elif record.step is None and (rate := record.values.get("learning_rate", 0.0)) > 0:
            self.facts["learning_rate"] = max(rate, self.facts.get("learning_rate", 0.0))
        return bool(record.values or record.facts)

    # ---- Progress bars

    def _read_with_bars(self, line: str) -> None:
        """Note the progress bars in a line, and read the dicts between them and what tqdm shows beside a bar."""
        end = 0
        for match in _BAR.finditer(line):
            before = line[end : match.start()]
            dicts = before.rfind("}") + 1
            if dicts:
                self._read_words(before[:dicts])
            name, end = before[dicts:], match.end()
            rate, *shown = match[3].split(",", 2)[1:] or [""]
            done, total = int(match[1]), int(match[2])
            unit = _UNIT.search(rate)
            if unit is None or (unit[1] or unit[2]).lower() in _STEP_UNITS:  # else examples or bytes: data processing
                if (epoch := _BAR_OF_EPOCH.search(name)) is not None:
                    self._first_epoch = int(epoch[1]) if self._first_epoch is None else self._first_epoch
                    done += (int(epoch[1]) - self._first_epoch) * total
                    total = -total  # not the steps of the run
                self._see_bar(done, total)
            self._read_text(" ".join([name, *shown])[:MAX_TEXT])
        if line[end:].strip():
            self._read_words(line[end:])

    def _see_bar(self, done: int, total: int) -> None:
        self._bars.pop(total, None)
        self._bars[total] = done  # the last one seen comes last
        if len(self._bars) > MAX_BARS:
            del self._bars[next(iter(self._bars))]
        if self.records:
            self.records[-1].after.setdefault(total, done)

    # ---- The whole

    def history(self) -> History:
        """Return the history of what was read."""
        builder = HistoryBuilder()
        self.fill(builder)
        return builder.build()

    def fill(self, builder: HistoryBuilder) -> None:
        """Add what was read to a history."""
        self._close()
        placed = place_records(_per_step_losses(self.records), self.facts)
        for record in placed.records:
            builder.add(record.step or 0, record.values)
        history = builder.history
        history.settings |= {name: value for name, value in self.facts.items() if name not in ("max_steps", "epochs")}
        if placed.max_steps is not None:
            history.settings["max_steps"] = placed.max_steps
        history.unit, history.is_excerpt = placed.unit, True
        history.repeated += placed.repeated
        history.skipped += self.skipped
        history.unread += self.unread
        history.unread_example = history.unread_example or self.unread_example


def _per_step_losses(records: Iterable[Record]) -> list[Record]:
    """Return the records with ``train_loss`` as the loss of its step, unless it is the mean of the whole run.

    transformers' scripts print that mean once, at the end, in a line by itself.
    """
    records = list(records)
    several = sum(TRAIN_LOSS in record.values for record in records) > 1
    for record in records:
        loss = record.values.pop(TRAIN_LOSS, None)
        if loss is not None and (several or record.metrics or record.step is not None):
            record.values.setdefault("loss", loss)
    return [record for record in records if record.metrics]


def _balanced(text: str) -> tuple[list[list[str]], str]:
    """Return the dicts of a text, each with the text before it and in parts between braces, and the incomplete rest."""
    groups: list[list[str]] = []
    parts: list[str] = []
    depth, start = 0, 0
    for match in _BRACE.finditer(text):
        depth = depth + 1 if match[0] == "{" else max(0, depth - 1)
        if match[0] == "}":
            parts.append(text[start : match.end()])
            start = match.end()
            if depth == 0:
                groups.append(parts)
                parts = []
    return groups, "".join(parts) + text[start:]
