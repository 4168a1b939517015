"""Read tables in text: fields between commas, semicolons, tabs or bars, as spreadsheet programs write them.

    prompt;chosen;rejected            the delimiter is the one that the header and the rows after it agree on
    "Why, oh; why?";"It ...";No       in quotes, delimiters and line breaks are text
    sep=;                             a first line of Excel that names the delimiter

Python's ``csv.Sniffer`` counts characters, also those of the text; here the rows are read with each delimiter.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from ...errors import DataError
from ..bounds import require_header
from ..formats.columns import ANSWERS, PROMPT_NAMES
from .decoding import opened_table

DELIMITERS = (",", ";", "\t", "|")
TRIED_ROWS = 100  # rows after the header that have to agree with it
TRIED_LETTERS = 2**22  # in which these rows lie; a quote that is never closed makes all that follows one field
MAX_FIELD_LETTERS = 2**24  # ten times the longest text that a model reads


def delimited_rows(
    path: Path, file: io.BufferedIOBase, *, usual: str, may_be_text: bool = False
) -> Iterator[dict[str, Any]]:
    """Read a table row by row.

    ``usual`` is the delimiter of files of this suffix, if the rows do not tell; ``may_be_text``: whether such files are
    often no tables, so that one of a single column is refused.
    """
    csv.field_size_limit(MAX_FIELD_LETTERS)  # 131,072 by default, less than a long conversation
    text = opened_table(file, path)
    beginning = text.read(TRIED_LETTERS)
    delimiter, rest = _named_delimiter(beginning)
    text.seek(0)
    text.read(len(beginning) - len(rest))
    delimiter = delimiter or _found_delimiter(rest, usual)
    lines = csv.reader(text, delimiter=delimiter, strict=True)
    header: list[str] = []
    try:
        for fields in lines:
            if not fields:
                continue
            if not header:
                header = _header(path, fields)
                if may_be_text and len(header) < 2:
                    raise DataError(
                        f"{path}: the first line has no tab, comma, semicolon or bar between names of columns;"
                        " expected a table (rows of JSON belong into a .jsonl file)"
                    )
                continue
            while len(fields) > len(header) and not fields[-1].strip():  # of columns without a name
                fields.pop()
            if len(fields) != len(header):
                raise DataError(
                    f"{path}, line {lines.line_num}: found {len(fields)} fields; expected the {len(header)} of the"
                    f" header ({', '.join(header)}); put fields with {delimiter!r} or a line break in double quotes"
                )
            yield dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise DataError(
            f"{path}, line {lines.line_num}: malformed: {error}; put fields with quotes in double quotes, and write"
            ' each quote in them twice ("")'
        ) from error


def _header(path: Path, fields: list[str]) -> list[str]:
    """Return the names of the columns, without empty ones at the end."""
    header = [field.strip() for field in fields]
    while len(header) > 1 and not header[-1]:
        header.pop()
    require_header(path, header)
    return header


def _named_delimiter(text: str) -> tuple[str | None, str]:
    """Return the delimiter that a first line ``sep=;`` names, and the text after it."""
    first, _, rest = text.partition("\n")
    first = first.rstrip("\r").strip('"')
    if len(first) == 5 and first.lower().startswith("sep=") and first[4] in DELIMITERS:
        return first[4], rest
    return None, text


def _found_delimiter(text: str, usual: str) -> str:
    """Return the delimiter by which the first rows have as many fields as the header, at least two.

    Where several do, or none does, that counts which gives the header more names that datasets use, then ``usual``.
    """
    found = []
    for delimiter in (usual, *(other for other in DELIMITERS if other != usual)):
        header, agrees = _tried(text, delimiter)
        if len(header) >= 2:
            known = sum(name.strip().lower() in (*ANSWERS, *PROMPT_NAMES) for name in header)
            found.append((agrees, known, delimiter))
    return max(found, key=lambda item: item[:2])[2] if found else usual


def _tried(text: str, delimiter: str) -> tuple[list[str], bool]:
    """Return the fields of the header, and whether the rows after it have as many."""
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    try:
        rows = (fields for fields in lines if fields)
        header = next(rows, [])
        while len(header) > 1 and not header[-1].strip():
            header.pop()
        return header, all(_has_width(fields, len(header)) for fields in islice(rows, TRIED_ROWS))
    except csv.Error:
        return header, False


def _has_width(fields: list[str], width: int) -> bool:
    return len(fields) == width or (len(fields) > width and not any(field.strip() for field in fields[width:]))
