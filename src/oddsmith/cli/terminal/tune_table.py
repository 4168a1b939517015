"""Show a search: a live table on a terminal, plain lines elsewhere, and the table of its end."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ...diagnose.findings import Verdict
from ...tuning.objective import Interval, best_of, comparisons_of, cost_of, gain
from ...tuning.results import AGAIN
from ...tuning.space import shown
from ...tuning.verdict import interval_text, settings_of, state_text
from .console import is_live, is_main_process, say, show, stderr_console, stdout_console
from .progress import REFRESH_PER_SECOND, clock

if TYPE_CHECKING:
    from ...tuning.results import Result
    from ...tuning.search import Found, Probe

MAX_WIDTH = 140
GAIN = "gain [95%]"
LEFT_OUT = ("time", "NLL", "log-odds")  # where a terminal is too narrow, one after the other; the cost has both
STYLES = {Verdict.ACT: "red", Verdict.WATCH: "yellow", Verdict.HEALTHY: "green", Verdict.CANNOT_TELL: ""}
EXPLAINED = "gain: cost of the recipe's own settings less that of a probe, nats, on the same pairs, with its interval"


def columns_of(names: Sequence[str]) -> list[str]:
    """Return the headings of the table; ``names`` are the settings that are searched."""
    return ["probe", *names, "cost", "log-odds", "NLL", GAIN, "diagnosis", "time"]


def cells_of(result: Result, results: Sequence[Result]) -> list[str]:
    """Return the row of a probe among the results of a search."""
    last = result.evaluations[-1] if result.evaluations else None
    figures = ["-"] * 3 if last is None else [f"{last.cost:.3f}", f"{last.log_odds:+.3f}", f"{last.nll:.3f}"]
    own = results[0] if results else result
    is_compared = result is not own and result.state == "finished"
    over = interval_text(gain(result, own, comparisons_of(results))) if is_compared else "-"
    values = map(shown, result.values.values())
    return [result.name, *values, *figures, over, state_text(result), clock(result.seconds)]


def plain_table(found: Found, names: Sequence[str]) -> list[str]:
    """Return the table of all probes as lines of text, the best one marked with ``>``; times are left out."""
    rows = [columns_of(names), *(cells_of(one, found.results) for one in found.results)]
    rows += [cells_of(one, found.repeated[:1]) for one in found.repeated]
    rows = [row[:-1] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    best = found.decision.best
    marks = [" ", *(">" if one is best else " " for one in found.results), *(" " for _ in found.repeated)]
    return [
        f"{mark} {'  '.join(f'{cell:<{width}}' for cell, width in zip(row, widths, strict=True))}".rstrip()
        for mark, row in zip(marks, rows, strict=True)
    ]


class Progress:
    """Shows how a search goes, as a context manager: the ``Watcher`` of ``tuning/search.py``."""

    def __init__(self, names: Sequence[str]):
        self._names = list(names)
        self._results: list[Result] = []
        self._doing = ""
        self._live: Live | None = None

    def __enter__(self) -> Progress:
        if is_live() and is_main_process():
            self._live = Live(
                get_renderable=self._rendered,
                console=stderr_console(),
                refresh_per_second=REFRESH_PER_SECOND,
                transient=True,
            )
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.stop()

    def begin(self, probe: Probe, results: Sequence[Result]) -> None:
        """Show which probe begins."""
        self._doing = f"probe {probe.name}: {settings_of(probe.values)}"
        if self._live is None:
            say(self._doing)

    def step(self, step: int, of: int) -> None:
        """Show how far the probe is."""
        self._doing = f"{self._doing.partition('  ')[0]}  step {step}/{of}"

    def end(self, result: Result, results: Sequence[Result], was_there: bool) -> None:
        """Show the result of a probe."""
        self._results.append(result)
        self._doing = ""
        if self._live is None:
            say(self._line(result, was_there))

    def _line(self, result: Result, was_there: bool) -> str:
        cells = dict(zip(columns_of(self._names), cells_of(result, _beside(result, self._results)), strict=True))
        parts = [f"{name} {cells[name]}" for name in ("cost", "log-odds", "NLL")]
        parts += [f"gain {cells[GAIN]}"] if cells[GAIN] != "-" else []
        why = result.error or (result.finding if result.verdict is Verdict.ACT else "")
        parts += [cells["diagnosis"], "was there" if was_there else cells["time"], *([why] if why else [])]
        head = f"probe {result.name}" + (f": {settings_of(result.values)}" if was_there else "")
        return f"{head}: {'  '.join(parts)}"

    def _rendered(self) -> Group:
        table = table_of(self._results, self._names, width=stderr_console().width)
        return Group(table, Text(self._doing, style="cyan"))


def table_of(results: Sequence[Result], names: Sequence[str], repeated: Sequence[Result] = (), *, width: int) -> Table:
    """Return the table of probes for a terminal of a width: no figure is cut, some columns are left out instead."""
    shown_results = [*results, *repeated]
    best = best_of([one for one in results if not _is_again(one)])
    headings = columns_of(names)
    rows = [dict(zip(headings, cells_of(one, _beside(one, shown_results)), strict=True)) for one in shown_results]
    for name in LEFT_OUT:
        widths = [max(map(len, (heading, *(row[heading] for row in rows)))) for heading in headings]
        if sum(widths) + 2 * len(widths) > width:
            headings.remove(name)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in headings:
        is_words = heading in ("probe", GAIN, "diagnosis")
        table.add_column(Text(heading), justify="left" if is_words else "right", no_wrap=heading != "diagnosis")
    for result, row in zip(shown_results, rows, strict=True):
        style = "bold" if result is best else STYLES[result.verdict] if result.verdict is Verdict.ACT else ""
        table.add_row(*(Text(row[heading], style=style) for heading in headings))
    return table


def _is_again(result: Result) -> bool:
    return result.name.endswith(AGAIN)


def _beside(result: Result, results: Sequence[Result]) -> list[Result]:
    """Return the probes of the same seed."""
    return [one for one in results if _is_again(one) == _is_again(result)]


def print_found(
    found: Found, names: Sequence[str], words: Sequence[str], files: dict[str, str], following: str | None
) -> None:
    """Print the outcome of a search on stdout."""
    console = stdout_console(MAX_WIDTH)
    if not console.is_terminal:
        console.width = MAX_WIDTH
    console.print(table_of(found.results, names, found.repeated, width=console.width))
    show(EXPLAINED)
    show("")
    width = min(console.width, 100)
    for line in words:
        show(textwrap.fill(line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False))
    show("")
    for name, file in files.items():
        show(f"{name}: {file}")
    if following is not None:
        show(f"next: {following}")


def document_of(found: Found, words: Sequence[str]) -> dict[str, Any]:
    """Return what a search has found as JSON values."""

    def interval(one: Interval | None) -> dict[str, float] | None:
        return None if one is None else one._asdict()

    def probe(result: Result, results: Sequence[Result]) -> dict[str, Any]:
        own = results[0]
        facts = {name: value for name, value in asdict(result).items() if name not in ("log_odds", "logp_chosen")}
        facts |= {"cost": cost_of(result), "pairs": len(result.log_odds)}
        over = None if result is own else gain(result, own, comparisons_of(results))
        return facts | {"gain": interval(over) if result.state == "finished" else None}

    decision = found.decision
    return {
        "outcome": decision.outcome,
        "words": list(words),
        "why_stopped": found.why_stopped,
        "winner": None if decision.winner is None else dict(decision.winner.values),
        "best": None if decision.best is None else dict(decision.best.values),
        "gain": interval(decision.gain),
        "gain_again": interval(decision.again),
        "probes": [probe(result, found.results) for result in found.results],
        "again": [probe(result, found.repeated) for result in found.repeated],
    }
