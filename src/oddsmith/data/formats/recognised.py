"""Recognise the format of a dataset by its first rows."""

from __future__ import annotations

from itertools import islice
from typing import Any

from ...errors import DataError, RowError
from .pairs import format_of

FORMAT_ROWS = 100  # rows at the front that may be invalid before the dataset counts as of an unknown format


def recognised_format(rows: Any, source: str, bad_rows: str) -> str:
    """Return the format of the first row that has one; where invalid rows are errors, of the very first row."""
    problem: DataError | None = None
    for number, row in enumerate(islice(rows, 1 if bad_rows == "error" else FORMAT_ROWS)):
        try:
            return format_of(row)
        except RowError as error:
            problem = problem or located(error, number, source, bad_rows)
        except DataError as error:
            problem = problem or DataError(f"{source}: {error}").offering(error.columns)
    raise problem or DataError(f"{source}: the dataset is empty; expected rows with a prompt and two answers")


def located(error: RowError, number: int, source: str, bad_rows: str) -> RowError:
    """Add dataset and row number to an error and, where invalid rows stop the run, how to leave them out."""
    hint = "; bad_rows=drop leaves such rows out" if bad_rows == "error" else ""
    return RowError(error.reason, error.detail + hint, number, source).offering(error.columns)
