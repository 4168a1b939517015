"""Write a cleaned dataset: the rows of another one, unchanged, without those that the checks drop."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ...errors import ConfigError, DataError
from ...system.files import replacing
from ..sources import FileRows, Rows, numbered_rows


def require_new_file(target: Path) -> None:
    """Raise a ``ConfigError``, before any work is done, for a file that exists, is not ``.jsonl`` or has no folder."""
    if target.suffix.lower() != ".jsonl":
        raise ConfigError(f"--fix {target}: the cleaned set is written as JSON Lines; give a name that ends in .jsonl")
    if target.exists():
        raise ConfigError(f"--fix {target}: is there already; choose another name, or remove it first")
    if not target.absolute().parent.is_dir():
        raise ConfigError(f"--fix {target}: there is no folder {target.absolute().parent}; make it first")


def write_cleaned(rows: Rows | FileRows, left_out: Collection[int], target: Path) -> int:
    """Write the rows that are not ``left_out`` (row numbers) as JSON Lines, and return how many were written.

    Where no row is left, or the file cannot be written, raise ``DataError``.
    """

    def json_value(value: Any) -> Any:  # arrays as lists, dates as text
        return value.tolist() if hasattr(value, "tolist") else str(value)

    written = 0
    try:
        with replacing(target) as partial:
            with partial.open("w", encoding="utf-8") as file:
                for number, row in numbered_rows(rows):
                    if number not in left_out:
                        file.write(json.dumps(row, ensure_ascii=False, default=json_value) + "\n")
                        written += 1
            if not written:
                raise DataError(f"{target}: no row is left, so nothing was written; repair the rows instead")
    except OSError as error:
        raise DataError(f"{target}: cannot be written ({error.strerror or error}); write elsewhere") from error
    return written
