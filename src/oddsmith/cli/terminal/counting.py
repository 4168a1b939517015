"""Show how much of a piece of work is done, by counting. Needs no torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.control import Control
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .console import is_live, is_main_process, say, stderr_console

LINE_EVERY_S = 10.0  # where there is no terminal


@contextmanager
def counting(doing: str, what: str, total: int | None, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Show a count as a bar on a terminal, elsewhere as a plain line now and then, with the rate and the time left.

    Yields a function to call with the number done since the last call. ``doing`` is a verb (``"checking"``), ``what``
    the things that are counted (``"rows"``), and ``total`` is ``None`` where it is not known. So many were ``done``
    before.
    """
    start, before = time.monotonic(), done
    if is_live() and is_main_process():
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,}") if total is None else MofNCompleteColumn(),
            TextColumn("{task.fields[what]}"),
            TimeElapsedColumn() if total is None else TimeRemainingColumn(),
        )
        with Progress(*columns, console=stderr_console(), transient=True) as progress:
            task = progress.add_task(doing, total=total, completed=done, what=what)

            def move(count: int) -> None:
                nonlocal done
                done += count
                rate = _rate(done - before, time.monotonic() - start)
                progress.update(task, advance=count, what=f"{what}, {rate}")

            yield move
        return
    last = start

    def count_up(count: int) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if now - last >= LINE_EVERY_S:
            last = now
            of = "" if total is None else f" of {total:,}"
            left = None if total is None else total - done
            say(f"{doing}: {done:,}{of} {what}, {pace(done - before, now - start, left)}")

    yield count_up


def clock(seconds: float) -> str:
    """Format a duration: ``0:07``, ``12:05``, ``1:02:03``, ``2 days, 1:02:03``."""
    text = str(timedelta(seconds=round(seconds)))
    return text.removeprefix("0:").removeprefix("0") if text.startswith("0:0") else text.removeprefix("0:")


def pace(count: int, seconds: float, left: int | None = None) -> str:
    """Say how fast a count goes, and how long the rest takes: ``1,200 a second, 0:07 left``."""
    text = _rate(count, seconds)
    return text if left is None or count == 0 else f"{text}, {clock(seconds / count * left)} left"


def _rate(count: int, seconds: float) -> str:
    rate = count / max(seconds, 1e-3)
    return f"{rate:,.0f} a second" if rate >= 10 else f"{rate:.2g} a second"


def count_in_place(text: str, is_last: bool) -> None:
    """Print a count over the one before it on a terminal; elsewhere print only the last one."""
    if is_live():
        stderr_console().print(text, end="\n" if is_last else "")
        if not is_last:
            stderr_console().control(Control.move_to_column(0))
    elif is_last:
        say(text)
