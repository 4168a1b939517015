"""Print Markdown while it arrives: finished blocks for good, the unfinished one redrawn in place."""

from __future__ import annotations

import re
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown

FENCE = re.compile(r"^\s*(```|~~~)")
# Lines that continue the block above a blank line: items of a list and indented lines, and beginnings of lines that may
# become one of them.
GOES_ON = re.compile(r"\s|[-*+](\s|$)|\d+([.)](\s|$)|$)")
REDRAWS_PER_SECOND = 10


class MarkdownStream:
    """Prints pieces of Markdown on a terminal; a context manager for one answer."""

    def __init__(self, console: Console):
        self._console = console
        self._open = ""  # the block that is not finished
        self._has_printed = False
        self._live: Live | None = None

    def __enter__(self) -> MarkdownStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._print(self._open)

    def add(self, piece: str) -> None:
        """Show more of the answer."""
        self._open += piece
        finished, self._open = split_finished(self._open)
        if finished:
            self._print(finished)
        if self._live is None:
            self._live = Live(console=self._console, transient=True, refresh_per_second=REDRAWS_PER_SECOND)
            self._live.start()
        # A block that is higher than the screen is shown by its end until it is finished.
        lines = self._open.split("\n")[2 - self._console.height :]
        self._live.update(Markdown("\n".join(lines)))

    def _print(self, block: str) -> None:
        """End the live display, and print a finished block."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        if block.strip():
            if self._has_printed:
                self._console.print()
            self._console.print(Markdown(block))
            self._has_printed = True


def split_finished(text: str) -> tuple[str, str]:
    """Split Markdown where nothing that follows can change how the first part looks; return both parts."""
    lines = text.split("\n")
    in_fence, cut = False, 0
    for number, line in enumerate(lines[:-1]):
        if FENCE.match(line):
            in_fence = not in_fence
        following = lines[number + 1]
        if not line.strip() and not in_fence and following.strip() and not GOES_ON.match(following):
            cut = number + 1
    return "\n".join(lines[:cut]).strip("\n"), "\n".join(lines[cut:])
