"""Show how much of a piece of work is done, by counting. Needs no torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.control import Control
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .console import is_live, is_main_process, say, stderr_console

LINE_EVERY_S = 10.0  # where there is no terminal


@contextmanager
def counting(doing: str, what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a count as a bar on a terminal, elsewhere as a plain line now and then.

    Yields a function to call with the number done since the last call. ``doing`` is a verb (``"checking"``), ``what``
    the things that are counted (``"rows"``), and ``total`` is ``None`` where it is not known.
    """
    if is_live() and is_main_process():
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,}") if total is None else MofNCompleteColumn(),
            TextColumn(what),
            TimeElapsedColumn() if total is None else TimeRemainingColumn(),
        )
        with Progress(*columns, console=stderr_console(), transient=True) as progress:
            task = progress.add_task(doing, total=total)
            yield lambda count: progress.update(task, advance=count)
        return
    done, last = 0, time.monotonic()

    def count_up(count: int) -> None:
        nonlocal done, last
        done += count
        if time.monotonic() - last >= LINE_EVERY_S:
            last = time.monotonic()
            say(f"{doing}: {done:,}{f' of {total:,}' if total is not None else ''} {what}")

    yield count_up


def count_in_place(text: str, is_last: bool) -> None:
    """Print a count over the one before it on a terminal; elsewhere print only the last one."""
    if is_live():
        stderr_console().print(text, end="\n" if is_last else "")
        if not is_last:
            stderr_console().control(Control.move_to_column(0))
    elif is_last:
        say(text)
