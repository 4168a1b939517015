"""Read files of text as they are saved or pasted: any encoding, colours, carriage returns, HTML."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..system.outside import open_file

# Characters. A start event with the numbers of 100,000 cut rows has 700,000.
MAX_LINE = 1_000_000

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-_])")
# The minus sign and the spaces of web pages; the bars of tables that rich draws.
_PLAIN = str.maketrans({"\u2212": "-", "\u00a0": " ", "\u202f": " ", "\u2502": "|", "\u2503": "|", "\ufeff": None})


def lines_of(path: Path) -> Iterator[str]:
    """Yield the lines of a text of any size that are not blank, without colours.

    A carriage return ends a line too, because progress bars use it. Of a line longer than ``MAX_LINE`` only the
    beginning is read. Bytes that are not of the encoding are replaced.
    """
    with open_file(path, "r", encoding=encoding_of(path), errors="replace", newline="\n") as file:
        while line := file.readline(MAX_LINE):
            if not line.endswith("\n"):
                while (rest := file.readline(MAX_LINE)) and not rest.endswith("\n"):
                    pass
            yield from plain_lines(line.rstrip("\n"))


def plain_lines(line: str) -> Iterator[str]:
    """Yield the parts of a line between carriage returns that are not blank, without colours."""
    line = _ESCAPES.sub("", line).replace("\0", "")
    if not line.isascii():
        line = line.translate(_PLAIN)
    for part in line.split("\r"):
        if part.strip():
            yield part


def encoding_of(path: Path) -> str:
    """Return UTF-16 for a file that begins like one, as PowerShell's ``>`` writes it; else UTF-8."""
    with open_file(path) as file:
        start = file.read(2_000)
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    for offset, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        high_bytes = start[offset::2]
        if len(high_bytes) > 4 and high_bytes.count(0) > 0.8 * len(high_bytes):
            return encoding
    return "utf-8-sig"


def has_html_table(lines: Iterable[str]) -> bool:
    """Return whether there is a cell of an HTML table."""
    return any("<t" in line and re.search(r"<t[hd][ >]", line) for line in lines)


def text_of_html(lines: Iterable[str]) -> list[str]:
    """Return the text of a page line by line: the rows of its tables with tabs between the cells."""
    text = re.sub(r"<t[hdr]\b[^<>]{0,500}>\s*", "", "\n".join(lines))
    text = re.sub(r"\s{0,200}</t[hd]>\s*", "\t", text)
    text = re.sub(r"</(?:tr|p|div|li|h\d)>|<br ?/?>", "\n", text)
    text = html.unescape(re.sub(r"<[^<>]{1,500}>", "", text))
    return [part.rstrip("\t") for line in text.split("\n") for part in plain_lines(line)]
