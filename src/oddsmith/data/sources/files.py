"""Read rows from JSON Lines, JSON, tables in text and spreadsheets, plain or gzipped; an error names file and line.

Rows need no common schema: a row may hold text where another holds messages. Parquet files have one schema and are
read by ``datasets`` (tables.py).
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from ...errors import DataError
from ...system.outside import open_file
from ...system.strict_json import read_json
from ..bounds import require_columns, too_much, unpacked_limit_bytes
from ..formats.values import kind_of
from .decoding import decoded
from .delimited import delimited_rows
from .spreadsheets import SPREADSHEETS, spreadsheet_rows

Row = dict[str, Any]

PARQUET = ".parquet"
JSON_LINES = (".jsonl", ".ndjson")

GZIP_BUFFER_BYTES = 2**20

_EXAMPLE = '{"prompt": ..., "chosen": ..., "rejected": ...}'


def kind_of_file(path: Path) -> str | None:
    """Return the suffix that decides how a file is read, without ``.gz``; None for a file that holds no rows."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".gz"]:
        suffixes.pop()
        return suffixes[-1] if suffixes and suffixes[-1] in READERS else None
    return suffixes[-1] if suffixes and (suffixes[-1] in READERS or suffixes[-1] == PARQUET) else None


def read_rows(path: Path) -> Iterator[Row]:
    """Read a file of JSON, a table or a spreadsheet row by row; its suffix says which of these it is.

    A file that cannot be read or is malformed is a ``DataError``; the message names line and column or byte.
    """
    kind = kind_of_file(path)
    if kind not in READERS:
        known = ", ".join((*READERS, PARQUET))
        found = f"the suffix {path.suffix!r}" if path.suffix else "no suffix"
        raise DataError(f"{path}: found {found}; expected one of {known} (or .gz)")
    try:
        is_gzip = path.suffix.lower() == ".gz"
        with io.BufferedReader(_Unpacked(path), GZIP_BUFFER_BYTES) if is_gzip else open_file(path) as file:
            yield from READERS[kind](path, file)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: not a whole gzip file ({error}); write it again or unpack it") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def require_path(path: Path) -> None:
    """Raise a ``DataError`` if there is no such file or folder; the message suggests similar names."""
    if path.exists():
        return
    folder = path.parent
    if not folder.is_dir():
        raise DataError(f"{path}: no such file, and no folder {folder}")
    rows = [entry.name for entry in folder.iterdir() if kind_of_file(entry) is not None or entry.is_dir()]
    nearest = get_close_matches(path.name, rows, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(str(folder / name) for name in nearest)}?" if nearest else "check the path"
    raise DataError(f"{path}: no such file; {hint}")


class _Unpacked(io.RawIOBase):
    """Unpack a gzip file up to a limit, because a few kilobytes can stand for gigabytes."""

    def __init__(self, path: Path):
        self._path, self._packed = path, open_file(path)
        self._file = gzip.open(self._packed)  # noqa: SIM115 - closed in close()
        self._bytes, self._size_bytes = 0, path.stat().st_size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer)
        self._bytes += count
        if self._bytes > unpacked_limit_bytes(self._size_bytes):
            raise DataError(f"{self._path}: {too_much(self._size_bytes)}; unpack it yourself if it is meant to")
        return count

    def close(self) -> None:
        self._file.close()
        self._packed.close()
        super().close()


def _json_lines(path: Path, file: io.BufferedIOBase) -> Iterator[Row]:
    offset_bytes = 0
    for number, line in enumerate(file, 1):
        text = decoded(line, path, offset_bytes, number)
        offset_bytes += len(line)
        if text.strip():
            yield parsed_line(text.rstrip(), path, number)


def _json_document(path: Path, file: io.BufferedIOBase) -> Iterator[Row]:
    """Read a list of rows, an object with such a list under ``data``, one row, or JSON Lines with a wrong suffix."""
    text = decoded(file.read(), path)
    if not text.strip():
        return
    try:
        value = read_json(text)
    except json.JSONDecodeError as error:
        if error.msg != "Extra data" or not text.lstrip().startswith("{"):
            raise _not_json(path, error, error.lineno) from error
        lines = enumerate(text.split("\n"), 1)
        value = [parsed_line(line, path, number) for number, line in lines if line.strip()]
    if isinstance(value, dict):
        value = value["data"] if isinstance(value.get("data"), list) else [value]
    if not isinstance(value, list):
        raise DataError(f'{path}: found {kind_of(value)}; expected a list of rows, or {{"data": [...]}}')
    for number, row in enumerate(value):
        if not isinstance(row, dict):
            raise DataError(f"{path}, row {number}: found {kind_of(row)}; expected an object such as {_EXAMPLE}")
        require_columns(f"{path}, row {number}", row)
        yield row


READERS: dict[str, Callable[[Path, io.BufferedIOBase], Iterator[Row]]] = {
    **dict.fromkeys(JSON_LINES, _json_lines),
    ".json": _json_document,
    ".csv": partial(delimited_rows, usual=","),
    ".tsv": partial(delimited_rows, usual="\t"),
    ".txt": partial(delimited_rows, usual="\t", may_be_text=True),
    **dict.fromkeys(SPREADSHEETS, spreadsheet_rows),
}


def plain_json_lines(path: Path) -> bool:
    """Return whether a file holds JSON Lines by its name, and is not compressed."""
    return path.suffix.lower() in JSON_LINES


def parsed_line(text: str, path: Path, number: int) -> Row:
    """Return the row of a line of JSON Lines; the ``DataError`` for one that is none names the line."""
    try:
        row = read_json(text)
    except json.JSONDecodeError as error:
        raise _not_json(path, error, number) from error
    if isinstance(row, dict):
        require_columns(f"{path}, line {number}", row)
        return row
    hint = "; a list of all rows belongs into a .json file" if isinstance(row, list) and number == 1 else ""
    raise DataError(f"{path}, line {number}: found {kind_of(row)}; expected an object such as {_EXAMPLE}{hint}")


def _not_json(path: Path, error: json.JSONDecodeError, line: int) -> DataError:
    hint = ""
    if line == 1 and kind_of_file(path) in JSON_LINES and error.doc.strip() in ("{", "["):
        hint = "; expected one whole object a line (a list of rows over many lines belongs into a .json file)"
    return DataError(f"{path}, line {line}, column {error.colno}: not JSON: {error.msg}{hint}")
