"""Decode the bytes of a file: UTF-8, and for tables what spreadsheet programs write (UTF-16, Windows-1252)."""

from __future__ import annotations

import codecs
import io
import logging
import re
import shutil
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any, TextIO

from ...errors import DataError

logger = logging.getLogger(__name__)

UTF_16 = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
# A text of Windows-1252 has letters without accents for the most part; of Cyrillic code pages it would have none.
MOST_ACCENTS = 0.3
CHUNK_BYTES = 2**20
MEMORY_BYTES = 32 * 2**20  # of what is unpacked
_UTF_8_PAIR = re.compile(rb"[\xc3-\xf4][\x80-\xbf]")


def decoded(data: bytes, path: Path, offset_bytes: int = 0, line: int | None = None) -> str:
    """Decode UTF-8: a file, or a line that begins ``offset_bytes`` into it; a byte order mark is dropped."""
    if offset_bytes == 0 and data.startswith(codecs.BOM_UTF8):
        offset_bytes, data = len(codecs.BOM_UTF8), data[len(codecs.BOM_UTF8) :]
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        number = line or data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {number}: not UTF-8 at byte {offset_bytes + error.start} of the file"
            f" (found 0x{data[error.start]:02x}); save the file as UTF-8"
        ) from error


def opened_table(file: Any, path: Path) -> TextIO:
    """Open the text of a table, from its beginning and with the ends of lines as they are; of UTF-8 line by line.

    What is UTF-16 or Windows-1252 is held in memory, in five bytes a character. What cannot be read from its beginning
    again, such as an unpacked file, goes through a temporary file.
    """
    if not file.seekable():
        packed, file = file, SpooledTemporaryFile(MEMORY_BYTES)  # noqa: SIM115 - goes with the text
        shutil.copyfileobj(packed, file, CHUNK_BYTES)
        file.seek(0)
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        while chunk := file.read(CHUNK_BYTES):
            decoder.decode(chunk)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        file.seek(0)
        return io.StringIO(_decoded_table(file.read(), path), newline="")
    file.seek(0)
    return io.TextIOWrapper(file, "utf-8-sig", newline="")


def _decoded_table(data: bytes, path: Path) -> str:
    """Decode the text of a table: UTF-8, UTF-16 with its mark, or Windows-1252, of which a warning tells."""
    for mark, name in UTF_16.items():
        if data.startswith(mark):
            try:
                return data[len(mark) :].decode(name)
            except UnicodeDecodeError as error:
                raise DataError(f"{path}: not {name.upper()} at byte {error.start}; save the file as UTF-8") from error
    try:
        return decoded(data, path)
    except DataError:
        text = _windows_1252(data)
        if text is None:
            raise
        logger.warning("%s: not UTF-8, and read as Windows-1252; look at its accents, or save it as UTF-8", path)
        return text


def _windows_1252(data: bytes) -> str | None:
    """Return a text in Windows-1252; None where it is likely to be damaged UTF-8, or of another code page."""
    if _UTF_8_PAIR.search(data):
        return None
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError:
        return None
    letters = [char for char in text if char.isalpha()]
    accents = sum(not char.isascii() for char in letters)
    return text if accents <= MOST_ACCENTS * len(letters) else None
