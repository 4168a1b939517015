"""Print the findings of ``oddsmith data check``: a table, an example with its loss mask, the surprising pairs."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.text import Text

from ...data.report import SHOWN_ROWS
from ...system.words import counted
from .console import stdout_console, visible

if TYPE_CHECKING:
    from rich.console import Console

    from ...data.checks.catalogue import Finding
    from ...data.checks.example import Example, Segment
    from ...data.checks.survey import Survey
    from ...model.preference import Preference

STYLES = {"pass": "green", "warn": "bold yellow", "fail": "bold red"}
MAX_WIDTH = 120
INDENT = " " * 8
SHOWN_CHARACTERS = 700  # of each part of the example, half of them from its end
SHOWN_SURPRISES = 20
SIDE_STYLES = {"chosen": "green", "rejected": "red"}


def print_survey(name: str, found: Survey, *, everything: bool = False) -> None:
    """Print the findings on stdout: the verdict, what fails, what warns, and how many checks pass.

    With ``everything`` those that pass are listed, and those that were not made.
    """
    console = stdout_console()
    formats = ", ".join(
        f"{kind} {count:,}" if len(found.formats) > 1 else kind for kind, count in found.formats.items()
    )
    kept = f", {found.kept:,} kept by the training" if found.kept is not None else ""
    verdicts = [finding.verdict for finding in found.findings]
    summary = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in ("fail", "warn", "pass"))
    _line(console, Text.assemble((found.verdict, STYLES[found.verdict]), f"  ({summary})"))
    _line(console, Text(f"{name}: {counted(found.rows, 'row')} ({formats or 'no known format'}){kept}", style="bold"))
    for verdict in ("fail", "warn", "pass") if everything else ("fail", "warn"):
        for finding in found.findings:
            if finding.verdict == verdict:
                _print_finding(console, finding)
    skipped = {flag: [one for one, needed in found.skipped.items() if needed == flag] for flag in _flags(found)}
    if everything:
        for flag, checks in skipped.items():
            _paragraph(console, f"not checked without {flag}: {', '.join(checks)}", indent="  ", style="dim")
        return
    passed = f"{counted(verdicts.count('pass'), 'check')} passed (--all lists them)"
    more = ", ".join(f"{len(checks)} with {flag}" for flag, checks in skipped.items())
    _line(console, Text(f"  {passed}{f'; {more} were not made' if more else ''}", style="dim"))


def _flags(found: Survey) -> list[str]:
    """Return the flags without which checks were not made."""
    return list(dict.fromkeys(found.skipped.values()))


def print_example(example: Example) -> None:
    """Print a pair as the model sees it, with what is learned in colour (or in brackets) and the rest dimmed."""
    console = stdout_console()
    mark = "in colour" if _has_colours(console) else "in [brackets]"
    what = f"what is learned {mark}" if example.is_tokenized else "as its row has it; with --model as the model sees it"
    _line(console, Text(f"\nrow {example.row}, {what}", style="bold"))
    _print_block(console, "prompt", [Text(_shortened(example.prompt), style="dim")])
    for side, segments in (("chosen", example.chosen), ("rejected", example.rejected)):
        _print_block(console, side, _marked(console, side, segments, is_masked=example.is_tokenized))


def print_preference(model: str, found: Preference) -> None:
    """Print how much a model has to learn, and the pairs that surprise it most."""
    console = stdout_console()
    _line(console, Text(f"\n{model} on {counted(found.pairs, 'pair')}", style="bold"))
    _line(
        console,
        Text(
            f"  prefers the chosen answer in {found.accuracy:.0%}; log-odds {found.log_odds_mean:+.3f} on average,"
            f" {found.log_odds_median:+.3f} in the middle; or_loss {found.or_loss:.3f}"
            " (0.693: no preference, 0: nothing left to learn)"
        ),
    )
    _line(console, Text("\nthe most surprising pairs: hard ones, or rows whose sides are mixed up", style="bold"))
    for pair in found.surprising[:SHOWN_SURPRISES]:
        _line(console, Text(f"  row {pair.row}  log-odds {pair.log_odds:+.2f}", style="bold"))
        for part in ("prompt", "chosen", "rejected"):
            text = " ".join(visible(getattr(pair, part)).split())
            width = min(console.width, MAX_WIDTH) - 14
            shown = textwrap.shorten(text, width, placeholder=" ...") if " " in text else text[:width]
            _line(console, Text.assemble(f"    {part:<9} ", (shown, SIDE_STYLES.get(part, "dim"))))


def _print_finding(console: Console, finding: Finding) -> None:
    percent = f"{finding.share:.1%}" if finding.share >= 0.0005 else "below 0.1%"
    share = f" {finding.count:,} ({percent})" if finding.count else ""
    head = Text.assemble((f"  {finding.verdict:<6}", STYLES[finding.verdict]), f"{finding.check:<38}{share}".rstrip())
    _line(console, head)
    if finding.found and (finding.verdict != "pass" or not finding.count):
        _paragraph(console, finding.found)
    if finding.verdict == "pass":
        return
    if finding.rows:
        more = f" and {finding.count - len(finding.rows):,} more" if finding.count > SHOWN_ROWS else ""
        _paragraph(console, f"row{'s' * (finding.count > 1)} {', '.join(map(str, finding.rows))}{more}")
    _paragraph(console, f"{finding.meaning}.")
    _paragraph(console, f"-> {finding.fix}")


def _print_block(console: Console, name: str, parts: Iterable[Text]) -> None:
    _line(console, Text(f"  {name}", style="bold"))
    for line in Text.assemble(*parts).split("\n", allow_blank=True):
        wrapped = line.wrap(console, max(20, min(console.width, MAX_WIDTH) - 4)) if line.plain else [line]
        for piece in wrapped:
            _line(console, Text("    ") + piece)


def _marked(console: Console, side: str, segments: Iterable[Segment], *, is_masked: bool) -> list[Text]:
    parts = []
    for segment in segments:
        text = _shortened(segment.text)
        if segment.is_learned and is_masked and not _has_colours(console):
            text = f"[{text}]"
        parts.append(Text(text, style=SIDE_STYLES[side] if segment.is_learned else "dim"))
    return parts


def _shortened(text: str) -> str:
    text = visible(text)
    if len(text) <= SHOWN_CHARACTERS:
        return text
    half = SHOWN_CHARACTERS // 2
    return f"{text[:half]} ... ({len(text) - 2 * half:,} characters) ... {text[-half:]}"


def _paragraph(console: Console, text: str, indent: str = INDENT, style: str = "") -> None:
    width = min(console.width, MAX_WIDTH)
    _line(
        console,
        Text(textwrap.fill(visible(text), width, initial_indent=indent, subsequent_indent=indent), style=style),
    )


def _line(console: Console, text: Text) -> None:
    console.print(text, soft_wrap=True)


def _has_colours(console: Console) -> bool:
    return console.color_system is not None and not console.no_color
