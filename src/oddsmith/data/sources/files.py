"""Files of rows: JSON Lines, JSON, CSV and TSV, plain or gzipped, read here so that an error can name the line.

Row by row and with no common schema: a row may hold text where another holds messages. Parquet has a schema of its own
and is left to ``datasets``.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, BinaryIO, cast

from ...errors import DataError
from ...system.strict_json import read_json
from ..formats.values import kind_of

Row = dict[str, Any]

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
PARQUET = ".parquet"

# Of a gzip file. Text shrinks to a tenth, the same line over and over to a hundredth; gzip can do a thousand.
MOST_RATIO, LEAST_UNPACKED_BYTES = 200, 64 * 2**20
GZIP_BUFFER_BYTES = 2**20


def kind_of_file(path: Path) -> str | None:
    """The suffix that decides how a file is read, ``.gz`` aside; None for a file that holds no rows."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".gz"]:
        suffixes.pop()
        return suffixes[-1] if suffixes and suffixes[-1] in READERS else None
    return suffixes[-1] if suffixes and (suffixes[-1] in READERS or suffixes[-1] == PARQUET) else None


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a JSON Lines, JSON, CSV or TSV file, in order.

    Args:
        path: The file; its suffix says what it is.

    Yields:
        Row: Column names to values.

    Raises:
        DataError: The file is missing, cannot be read, or is malformed; the message names line and column or byte.
    """
    kind = kind_of_file(path)
    if kind not in READERS:
        known = ", ".join((*READERS, PARQUET))
        raise DataError(
            f"{path}: found the suffix {path.suffix or 'of no file type'!r}; expected one of {known} (or .gz)"
        )
    try:
        with _opened(path) as file:
            yield from READERS[kind](path, file)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: not a whole gzip file ({error}); write it again or unpack it") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def require_path(path: Path) -> None:
    """Check that a file or folder is there.

    Args:
        path: What the user named.

    Raises:
        DataError: It is not; the message suggests what is there under a similar name.
    """
    if path.exists():
        return
    folder = path.parent
    if not folder.is_dir():
        raise DataError(f"{path}: no such file, and no folder {folder}")
    nearest = get_close_matches(path.name, [entry.name for entry in folder.iterdir()], n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(str(folder / name) for name in nearest)}?" if nearest else "check the path"
    raise DataError(f"{path}: no such file; {hint}")


class _Unpacked(io.RawIOBase):
    """A gzip file that is not unpacked without end: a few kilobytes can stand for gigabytes.

    Args:
        path: The file.
    """

    def __init__(self, path: Path):
        self._path, self._file = path, gzip.open(path, "rb")  # noqa: SIM115 - closed in close()
        self._bytes, self._most_bytes = 0, max(LEAST_UNPACKED_BYTES, MOST_RATIO * path.stat().st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer)
        self._bytes += count
        if self._bytes > self._most_bytes:
            raise DataError(
                f"{self._path}: unpacks to more than {self._most_bytes:,} bytes, {MOST_RATIO} times its size;"
                " unpack it yourself if it is meant to"
            )
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def _opened(path: Path) -> BinaryIO:
    if path.suffix.lower() != ".gz":
        return path.open("rb")
    return cast(BinaryIO, io.BufferedReader(_Unpacked(path), GZIP_BUFFER_BYTES))


def _json_lines(path: Path, file: BinaryIO) -> Iterator[Row]:
    offset_bytes = 0
    for number, line in enumerate(file, 1):
        text = _decoded(line, path, offset_bytes, number)
        offset_bytes += len(line)
        if text.strip():
            yield _parsed_line(text.rstrip(), path, number)


def _json_document(path: Path, file: BinaryIO) -> Iterator[Row]:
    """A list of rows, an object with such a list under ``data``, or one row; or JSON Lines after all."""
    text = _decoded(file.read(), path)
    if not text.strip():
        return
    try:
        value = read_json(text)
    except json.JSONDecodeError as error:
        if error.msg != "Extra data" or not text.lstrip().startswith("{"):
            raise _not_json(path, error, error.lineno) from error
        lines = enumerate(text.split("\n"), 1)
        value = [_parsed_line(line, path, number) for number, line in lines if line.strip()]
    if isinstance(value, dict):
        value = value["data"] if isinstance(value.get("data"), list) else [value]
    if not isinstance(value, list):
        raise DataError(f'{path}: found {kind_of(value)}; expected a list of rows, or {{"data": [...]}}')
    for number, row in enumerate(value):
        if not isinstance(row, dict):
            raise DataError(f"{path}, row {number}: found {kind_of(row)}; expected an object such as {_EXAMPLE}")
        yield row


def _comma_separated(path: Path, file: BinaryIO) -> Iterator[Row]:
    return _delimited(path, file, ",")


def _tab_separated(path: Path, file: BinaryIO) -> Iterator[Row]:
    return _delimited(path, file, "\t")


def _delimited(path: Path, file: BinaryIO, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)  # 131,072 characters by default, less than a long conversation
    lines = csv.reader(io.StringIO(_decoded(file.read(), path), newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    try:
        for fields in lines:
            if not fields:
                continue
            if not header:
                header = _checked_header(fields, path)
                continue
            if len(fields) != len(header):
                raise DataError(
                    f"{path}, line {lines.line_num}: found {len(fields)} fields; expected the {len(header)} of the"
                    f" header ({', '.join(header)}); put fields with {delimiter!r} or a line break in double quotes"
                )
            yield {name: _cell(field) for name, field in zip(header, fields, strict=True)}
    except csv.Error as error:
        raise DataError(f"{path}, line {lines.line_num}: malformed: {error}") from error


def _checked_header(fields: list[str], path: Path) -> list[str]:
    names = [field.strip() for field in fields]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path}: the header names {', '.join(map(repr, twice))} twice; give each column its own name")
    return names


def _cell(text: str) -> Any:
    """The text of a cell, or the messages that it spells in JSON, as tools write conversations into CSV."""
    if not text.startswith(('[{"', "[{ ")):
        return text
    try:
        value = read_json(text)
    except json.JSONDecodeError:
        return text  # an answer may well begin like this
    is_messages = all(isinstance(item, dict) and ("role" in item or "from" in item) for item in value)
    return value if is_messages else text


READERS: dict[str, Callable[[Path, BinaryIO], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_document,
    ".csv": _comma_separated,
    ".tsv": _tab_separated,
}

_EXAMPLE = '{"prompt": ..., "chosen": ..., "rejected": ...}'


def _decoded(data: bytes, path: Path, offset_bytes: int = 0, line: int | None = None) -> str:
    """The text of a file or of a line that begins ``offset_bytes`` into it, without a byte order mark."""
    if offset_bytes == 0 and data.startswith(BYTE_ORDER_MARK):
        offset_bytes, data = len(BYTE_ORDER_MARK), data[len(BYTE_ORDER_MARK) :]
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        number = line or data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {number}: not UTF-8 at byte {offset_bytes + error.start} of the file"
            f" (found 0x{data[error.start]:02x}); save the file as UTF-8"
        ) from error


def _parsed_line(text: str, path: Path, number: int) -> Row:
    try:
        row = read_json(text)
    except json.JSONDecodeError as error:
        raise _not_json(path, error, number) from error
    if isinstance(row, dict):
        return row
    hint = "; a list of all rows belongs into a .json file" if isinstance(row, list) and number == 1 else ""
    raise DataError(f"{path}, line {number}: found {kind_of(row)}; expected an object such as {_EXAMPLE}{hint}")


def _not_json(path: Path, error: json.JSONDecodeError, line: int) -> DataError:
    hint = ""
    if line == 1 and kind_of_file(path) in (".jsonl", ".ndjson") and error.doc.strip() in ("{", "["):
        hint = "; expected one whole object a line (a list of rows over many lines belongs into a .json file)"
    return DataError(f"{path}, line {line}, column {error.colno}: not JSON: {error.msg}{hint}")
