"""Print the help of the commands: flags, then settings by group, the common ones first, fitted to the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence

from rich.text import Text

from ..terminal.console import stderr_console, stdout_console
from .resolve import Option
from .schema import Field

MAX_WIDTH = 120
FLAG_COLUMNS = 34
COMMAND_COLUMNS = 14

_METAVARS = {"dict": "JSON", "list[dict]": "JSON", "list": "A B ...", "str": "TEXT", "float": "X", "int": "N"}


class _Page:
    """Prints paragraphs and entries in two columns, wrapped to the width of the terminal."""

    def __init__(self, columns: int, to_stderr: bool = False):
        self.console = stderr_console() if to_stderr else stdout_console()
        self.width, self.columns = min(self.console.width, MAX_WIDTH), columns

    def paragraph(self, text: str, style: str = "") -> None:
        self.console.print(Text(textwrap.fill(text, self.width), style=style), soft_wrap=True)

    def section(self, title: str, entries: Mapping[str, str]) -> None:
        """Print a heading and under it ``  --beta X      Weight of the odds-ratio term ...`` for each entry."""
        self.console.print()
        self.console.print(Text(title, style="bold"))
        for term, text in entries.items():
            name, _, metavar = term.partition(" ") if term.startswith("-") else (term, "", "")
            left = Text.assemble("  ", (name, "cyan"), " ", metavar)
            if len(left) >= self.columns:
                self.console.print(left, soft_wrap=True)
                left = Text()
            left.pad_right(self.columns - len(left))
            for line in textwrap.wrap(text, self.width - self.columns) or [""]:
                self.console.print(left + Text(line), soft_wrap=True)
                left = Text(" " * self.columns)


def print_entries(
    usage: str,
    intro: str,
    sections: Mapping[str, Mapping[str, str]],
    end: str,
    to_stderr: bool = False,
    columns: int = COMMAND_COLUMNS,
) -> None:
    """Print the help of a group of commands; on stderr as the answer to a command line that cannot be run."""
    page = _Page(columns, to_stderr)
    page.paragraph(f"Usage: {usage}", "bold")
    page.console.print()
    page.paragraph(intro)
    for title, entries in sections.items():
        page.section(title, entries)
    if end:
        page.console.print()
        page.paragraph(end)


def print_help(
    usage: str, intro: Sequence[str], options: Iterable[Option], fields: Mapping[str, Field], everything: bool
) -> None:
    """Print the help of a command on stdout; with ``everything`` all settings of use, else the common ones."""
    page = _Page(FLAG_COLUMNS)
    page.paragraph(f"Usage: {usage}", "bold")
    for text in intro:
        page.console.print()
        page.paragraph(text)
    page.section("Command", {f"{option.flag} {option.metavar}".strip(): option.help for option in options})
    listed = [field for field in fields.values() if field.listed]
    shown = [field for field in listed if field.common or everything]
    for group in dict.fromkeys(field.group for field in shown):
        page.section(group, {_flag(field): _description(field) for field in shown if field.group == group})
    if len(shown) < len(listed):
        page.console.print()
        page.paragraph(f"{len(listed) - len(shown)} more settings, all of transformers' among them: --help-all")


def _flag(field: Field) -> str:
    if field.types == ("bool",):
        return f"--no-{field.flag[2:]}" if field.default is True else field.flag
    if field.choices and len("|".join(field.choices)) <= FLAG_COLUMNS - len(field.flag) - 4:
        return f"{field.flag} {'|'.join(field.choices)}"
    return f"{field.flag} {next((_METAVARS[kind] for kind in _METAVARS if kind in field.types), 'TEXT')}"


def _description(field: Field) -> str:
    """Return the help, the choices that did not fit beside the flag, and the default in brackets."""
    text = field.help
    if field.choices and not _flag(field).endswith("|".join(field.choices)):
        few = len(field.choices) < 9
        text += f" One of {', '.join(field.choices)}." if few else f" Such as {', '.join(field.choices[:5])}, ..."
    default = field.default
    if field.types == ("bool",):
        return f"{text} [on; this switches it off]" if default is True else text
    if default is None or default == "" or default == []:
        return text
    return f"{text} [{default:g}]" if isinstance(default, float) else f"{text} [{default}]"
