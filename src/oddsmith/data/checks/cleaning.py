"""A cleaned dataset: the rows of another as they are, less those that are left out."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ...errors import ConfigError, DataError
from ..sources import FileRows, Rows, batches


def require_new_file(target: Path) -> None:
    """Refuse, before any work is done, a file that cannot be written or is there already.

    Args:
        target: Where the cleaned set is to go.

    Raises:
        ConfigError: It is no ``.jsonl``, exists, or lies in no folder.
    """
    if target.suffix.lower() != ".jsonl":
        raise ConfigError(f"--fix {target}: the cleaned set is written as JSON Lines; give a name that ends in .jsonl")
    if target.exists():
        raise ConfigError(f"--fix {target}: is there already; choose another name, or remove it first")
    if not target.absolute().parent.is_dir():
        raise ConfigError(f"--fix {target}: there is no folder {target.absolute().parent}; make it first")


def write_cleaned(rows: Rows | FileRows, left_out: Collection[int], target: Path) -> int:
    """Write the rows that stay as JSON Lines: beside, and renamed when whole.

    Args:
        rows: All rows.
        left_out: Numbers of those that do not stay.
        target: The file; see ``require_new_file``.

    Returns:
        How many rows stand in it.

    Raises:
        DataError: No row is left, or the disk cannot be written.
    """
    written = 0
    try:
        descriptor, name = tempfile.mkstemp(dir=target.absolute().parent, prefix=target.name, suffix=".partial")
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                for start, batch in batches(rows):
                    for number, row in enumerate(batch, start):
                        if number not in left_out:
                            file.write(json.dumps(row, ensure_ascii=False, default=_json_value) + "\n")
                            written += 1
                file.flush()
                os.fsync(file.fileno())
            if not written:
                raise DataError(f"{target}: no row is left, so nothing was written; repair the rows instead")
            os.chmod(name, 0o644)
            os.replace(name, target)
        finally:
            Path(name).unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{target}: cannot be written ({error.strerror or error}); write elsewhere") from error
    return written


def _json_value(value: Any) -> Any:
    """What stands in JSON for a value that it has no form for: arrays as lists, dates as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
