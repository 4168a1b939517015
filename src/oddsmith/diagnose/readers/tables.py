"""Reader of CSV exports: W&B (a chart, or a run's history) and TensorBoard (one quantity a file).

| head | from |
|---|---|
| ``Step, RUN - train/loss, RUN - train/loss__MIN, ...`` | W&B, "export CSV" of a chart |
| ``_step, _runtime, train/loss, train/global_step, ...`` | W&B, ``run.history().to_csv()`` |
| ``Wall time, Step, Value`` | TensorBoard; what it is stands in the file's name: ``run-NAME-tag-train_loss.csv`` |

Several files, as of a folder, are put together into one history.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from pathlib import Path

from ..history import History, HistoryBuilder
from ..names import held_out_name, known_name
from .lines import LONGEST_LINE, lines_of

_STEP_COLUMNS = ("train/global_step", "step", "global_step", "_step")


def read_tables(paths: Iterable[Path], source: str) -> History:
    """The history that CSV files hold together.

    Args:
        paths: The files.
        source: What they are called together.

    Returns:
        The history; empty where none of them is readable.
    """
    builder = HistoryBuilder(source)
    csv.field_size_limit(LONGEST_LINE)
    for path in paths:
        rows = csv.reader((line.replace("\0", "") for line in lines_of(path)), strict=False)
        head = next(rows, None)
        if head is not None:
            _read_rows(builder, head, rows, path)
    return builder.build()


def _read_rows(builder: HistoryBuilder, head: list[str], rows: Iterable[list[str]], path: Path) -> None:
    columns = [column.strip().lstrip("\ufeff") for column in head]
    lower = [column.lower() for column in columns]
    place = next((lower.index(name) for name in _STEP_COLUMNS if name in lower), None)
    if place is None:
        return
    if lower[:3] == ["wall time", "step", "value"]:
        names: list[str | None] = [None, None, _name_of_file(path)]
    else:
        names = _names_of_columns(columns)
    names[place] = None
    for number, row in enumerate(rows, 1):
        try:
            step = int(float(row[place])) if row[place] else number
        except (ValueError, IndexError, OverflowError):
            builder.history.skipped += 1
            continue
        values = {name: cell for name, cell in zip(names, row, strict=False) if name and cell}
        builder.add(step, values)


def _names_of_columns(columns: list[str]) -> list[str | None]:
    """``run-1 - train/loss`` -> ``train/loss``; columns of extremes, and of runs after the first, are passed over."""
    names: list[str | None] = []
    first_run: str | None = None
    for column in columns:
        run, separator, name = column.rpartition(" - ")
        if separator and first_run is None:
            first_run = run
        other = bool(separator) and run != first_run
        names.append(None if other or name.endswith(("__MIN", "__MAX")) else name)
    return names


def _name_of_file(path: Path) -> str | None:
    """The quantity in a file's name: the longest known ending."""
    stem = path.stem.rpartition("tag-")[2]
    words = re.split(r"(?=_)", stem)
    for first in range(len(words)):
        name = "".join(words[first:]).lstrip("_")
        if name == "train_loss":
            return "loss"
        if known_name(name) or held_out_name(name):
            return name
    return None
