"""Read tables: of notebooks, model cards, CSV exports; with the steps in any column, or only with epochs.

| head | from |
|---|---|
| ``Step  Training Loss  Validation Loss  Rewards/chosen ...`` | notebooks; tabs, ``|`` or spaces between the cells |
| ``| Training Loss | Epoch | Step | Validation Loss | ...`` | model cards |
| ``Step, RUN - train/loss, RUN - train/loss__MIN, ...`` | W&B, "export CSV" of a chart |
| ``_step, _runtime, train/loss, train/global_step, ...`` | W&B, ``run.history().to_csv()`` |
| ``Wall time, Step, Value`` | TensorBoard; the metric is in the file's name: ``run-NAME-tag-train_loss.csv`` |
| ``tag, step, value`` | TensorBoard through pandas, MLflow |
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence

from .history import EPOCH
from .names import HELD_OUT, TRAIN_LOSS, canonical, held_out_name, in_set, known_name
from .records import NEVER_EVALUATED, Pair, Record, cell_number, name_at_end, record_of_pairs

MAX_ROW = 100_000  # characters
MAX_SPACED_ROW = 2_000
_NEEDED = re.compile(r"step|epoch|iter|loss|value|/", re.IGNORECASE)  # in each head
_IN_GROUP = re.compile(r"[\w-]+ ?/ ?[\w-]+")  # "logits / chosen", which no rule uses
_RULE = re.compile(r"[\s|:+=-]+")  # the line below a head
_NO_LOG = re.compile(r"\bno (?:log|data)\b", re.IGNORECASE)
# transformers shows them beside the metrics of an evaluation.
_OF_EVALUATION = frozenset(["runtime", "samples per second", "steps per second"])
_NAME_COLUMNS = ("tag", "metric", "key", "name", "variable")  # of tables with a row for each value


class Table:
    """A head of columns, which reads the rows below it.

    Args:
        names: What the columns hold, by ``names.canonical``; ``None`` for anything else.
        split: Splits a row into its cells.
        name_column: Where each row names the metric of its value, if it does.
    """

    def __init__(self, names: list[str | None], split: Callable[[str], list[str]], name_column: int | None = None):
        self._names, self._split, self._name_column = names, split, name_column
        self._steps = [place for place, name in enumerate(names) if name is not None and name.startswith("step")]

    def row(self, line: str) -> Record | None:
        """Return what a row says; ``None`` for a line that is none."""
        cells, names = self._split(line[:MAX_ROW]), self._names
        if self._split is _spaced:  # without separators, every cell is needed; an index or a time may stand before them
            cells = cells[-len(names) :]
            if len(cells) < len(names) or any(_is_text(cell) for name, cell in zip(names, cells, strict=True) if name):
                return None
        if self._name_column is not None and self._name_column < len(cells):
            names = [canonical(cells[self._name_column]) if name == "value" else name for name in names]
        cells = [*(" ".join(cell.split()[-1:]) for cell in cells[:1]), *cells[1:]]  # behind a time or a rank
        numbers = [(name, cell_number(cell)) for name, cell in zip(names, cells, strict=False) if name]
        record = record_of_pairs(Pair(name, number) for name, number in numbers if number is not None)
        has_other_step = record.step is None and any(
            cells[place].strip() for place in self._steps if place < len(cells)
        )
        return record if record.values and not has_other_step else None


def table_of(line: str, value: str | None = None) -> Table | None:
    """Return the table that a line is the head of; ``None`` for another line.

    ``value`` is the metric of a column called "Value".
    """
    if not _NEEDED.search(line):
        return None
    for split_head, split_row in _SPLITS:
        columns = [column.strip() for column in split_head(line[:MAX_ROW])]
        if len(columns) < 2 or any(cell_number(column) is not None for column in columns):
            continue
        lower = [column.lower() for column in columns]
        if "value" in lower and "step" in lower:
            name_column = next((lower.index(name) for name in _NAME_COLUMNS if name in lower), None)
            if value is not None or name_column is not None:
                names = [value or "value" if name == "value" else canonical(name) for name in lower]
                return Table(names, split_row, None if value else name_column)
        names = _names_of(columns)
        places = [name for name in names if name == EPOCH or (name or "").startswith("step")]
        metrics = len([name for name in names if name]) - len(places)
        if metrics and (places or (metrics > 1 and split_row is not _spaced)):
            return Table(names, split_row)
    return None


def is_rule(line: str) -> bool:
    """Return whether a line is only drawn, as below the head of a table."""
    return _RULE.fullmatch(line) is not None


def looks_like_row(line: str) -> bool:
    """Return whether a line is nothing but numbers."""
    cells = _spaced(line)
    return len(cells) > 1 and not any(_is_text(cell) for cell in cells)


def _names_of(columns: Sequence[str]) -> list[str | None]:
    """Return what columns hold. Beside a validation loss, all metrics but the training loss are those of evaluations.

    transformers prints them without a prefix; where others have one, those without are of the training.
    """
    columns = _of_first_run(columns)
    lower = [column.lower() for column in columns]
    names = [name_at_end(columns[0]), *map(canonical, columns[1:])]  # a time or a rank may stand before the first
    if "loss" not in names:
        names = ["loss" if name == TRAIN_LOSS else name for name in names]
    of_notebook = "training loss" in lower
    prefixed = sum(held_out_name(column) is not None for column in columns)
    if ("eval_loss" in names and prefixed == 1) or (of_notebook and _OF_EVALUATION & set(lower)):
        names = [f"eval_{name}" if _may_be_evaluated(name) else name for name in names]
    if of_notebook:  # with several evaluation sets: "Code Loss"
        found = [held_out_name(column, of_evaluation=True) for column in columns]
        names = [in_set(*one) if name is None and one else name for name, one in zip(names, found, strict=True)]
    return names


def _may_be_evaluated(name: str | None) -> bool:
    return name is not None and known_name(name) == name and name not in {"loss", *NEVER_EVALUATED}


def _of_first_run(columns: Sequence[str]) -> list[str]:
    """Return ``train/loss`` for ``run-1 - train/loss``, and nothing for columns of extremes and of any other run."""
    runs = [column.rpartition(" - ") for column in columns]
    first = next((run for run, separator, _ in runs if separator), "")
    return ["" if (run and run != first) or name.endswith(("__MIN", "__MAX")) else name for run, _, name in runs]


def _is_text(cell: str) -> bool:
    return cell != "-" and cell_number(cell) is None


# ---- Cells


def _tabs(line: str) -> list[str]:
    return line.split("\t") if "\t" in line else []


def _bars(line: str) -> list[str]:
    return line.strip().strip("|").split("|") if "|" in line else []


def _commas(line: str) -> list[str]:
    return next(csv.reader([line]), []) if "," in line else []


def _semicolons(line: str) -> list[str]:
    """Return the cells of a CSV from a country with decimal commas."""
    return [re.sub(r"(?<=\d),(?=\d)", ".", cell) for cell in line.split(";")] if ";" in line else []


def _spaced(line: str) -> list[str]:
    return _NO_LOG.sub("-", line[:MAX_SPACED_ROW].lstrip("# ")).split()


def _wide(line: str) -> list[str]:
    return re.split(r"\s{2,}", line[:MAX_SPACED_ROW].strip().lstrip("# "))


def _known_words(line: str) -> list[str]:
    """Return the columns of a head with single spaces; nothing if a word belongs to no column."""
    words = line[:MAX_SPACED_ROW].lstrip("# ").split()
    columns: list[str] = []
    while words:
        for count in range(min(4, len(words)), 0, -1):
            column = " ".join(words[:count])
            if _is_one_column(column):
                columns.append(column)
                words = words[count:]
                break
        else:
            if columns:
                return []
            words = words[1:]  # a time, a rank
    return columns


def _is_one_column(column: str) -> bool:
    name, held_out = canonical(column), held_out_name(column)
    if held_out is not None:
        return held_out[0] in HELD_OUT.values()  # not of a set called "loss_rewards"
    return name is not None or column.lower() in _OF_EVALUATION or _IN_GROUP.fullmatch(column) is not None


_SPLITS = (
    (_tabs, _tabs),
    (_bars, _bars),
    (_semicolons, _semicolons),
    (_commas, _commas),
    (_wide, _spaced),
    (_known_words, _spaced),
)
