"""Read the rows of a spreadsheet: Excel's .xlsx, .xlsm and .xls, and .ods of LibreOffice.

The first row of the first sheet is the header. Further sheets with the same header hold more rows; others are left out,
of which a warning tells. Numbers and dates become text as in a CSV file, empty cells empty text.
"""

from __future__ import annotations

import io
import logging
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...errors import DataError, MissingExtraError
from ..bounds import require_header, too_much, unpacked_limit_bytes
from ..inspection import require_sound

logger = logging.getLogger(__name__)

SPREADSHEETS = (".xlsx", ".xlsm", ".xls", ".ods")


def spreadsheet_rows(path: Path, file: io.BufferedIOBase) -> Iterator[dict[str, Any]]:
    """Read a spreadsheet row by row; a damaged one, or one without a header, is a ``DataError``."""
    try:
        from python_calamine import CalamineWorkbook
    except ImportError as error:
        raise MissingExtraError(f"{path}: reading a spreadsheet", "spreadsheets") from error
    data = file.read()
    _require_sound_size(path, data)
    require_sound([path], "spreadsheet")
    book = CalamineWorkbook.from_filelike(io.BytesIO(data))
    sheets = [(name, book.get_sheet_by_name(name).to_python(skip_empty_area=True)) for name in book.sheet_names]
    tables = [(name, _without_blanks(cells)) for name, cells in sheets]
    filled = [(name, table[0], table[1:]) for name, table in tables if table]
    if not filled:
        return
    header = filled[0][1]
    require_header(path, header)
    others = [name for name, names, _ in filled if names != header]
    if others:
        logger.warning("%s: only sheets with the header of %r are read, not %s", path, filled[0][0], ", ".join(others))
    for cells in (cells for _, names, rows in filled if names == header for cells in rows):
        yield dict(zip(header, [*cells, *[""] * (len(header) - len(cells))], strict=True))


def _require_sound_size(path: Path, data: bytes) -> None:
    """Refuse a file of kilobytes that unpacks to gigabytes."""
    if not data.startswith(b"PK"):
        return
    try:
        size = sum(entry.file_size for entry in zipfile.ZipFile(io.BytesIO(data)).infolist())
    except zipfile.BadZipFile as error:
        raise DataError(f"{path}: not a spreadsheet that can be read ({error}); save it again, or as CSV") from error
    if size > unpacked_limit_bytes(len(data)):
        raise DataError(f"{path}: {too_much(len(data))}; save it as CSV")


def _without_blanks(cells: Sequence[Sequence[Any]]) -> list[list[str]]:
    """Return the rows of a sheet as text, without blank ones; cells to the right of the header are left out."""
    rows = [row for row in ([_text(cell) for cell in row] for row in cells) if any(text.strip() for text in row)]
    if not rows:
        return []
    header = [text.strip() for text in rows[0]]
    while header and not header[-1]:
        header.pop()
    return [header, *(row[: len(header)] for row in rows[1:])]


def _text(cell: Any) -> str:
    """Return a cell as a CSV file would hold it."""
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, float) and cell == int(cell) and abs(cell) < 2**53:
        return str(int(cell))
    return cell if isinstance(cell, str) else str(cell)
