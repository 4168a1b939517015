"""The help of the commands whose flags are the settings: grouped, common ones first, fitted to the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console
from rich.text import Text

from .layout import GROUPS
from .resolve import Option
from .schema import Field

WIDEST = 120
FLAG_COLUMNS = 34

_METAVARS = {"int": "N", "float": "X", "str": "TEXT", "list": "A B ...", "dict": "JSON", "list[dict]": "JSON"}


def print_help(
    usage: str,
    intro: Sequence[str],
    options: Iterable[Option],
    fields: Mapping[str, Field],
    everything: bool,
) -> None:
    """Print a command's help on stdout.

    Args:
        usage: The command line in short.
        intro: Paragraphs.
        options: Flags of the command itself.
        fields: The settings that are its flags.
        everything: List all of them; else the common ones.
    """
    console = Console(highlight=False, markup=False, emoji=False)
    width = min(console.width, WIDEST)

    def paragraph(text: str, style: str = "") -> None:
        console.print(Text(textwrap.fill(text, width), style=style), soft_wrap=True)

    paragraph(f"Usage: {usage}", "bold")
    for text in intro:
        console.print()
        paragraph(text)
    console.print()
    console.print(Text("Command", style="bold"))
    for option in options:
        _print_entry(console, f"{option.flag} {option.metavar}".strip(), option.help, width)
    left_out = 0
    for group in GROUPS:
        members = [field for field in fields.values() if field.group == group]
        shown = [field for field in members if field.common or everything]
        left_out += len(members) - len(shown)
        if shown:
            console.print()
            console.print(Text(group, style="bold"))
        for field in shown:
            _print_entry(console, _flag(field), _description(field), width)
    if left_out:
        console.print()
        paragraph(f"{left_out} more settings, all of transformers' among them: --help-all")


def _print_entry(console: Console, flag: str, text: str, width: int) -> None:
    """``  --beta X      Weight of the odds-ratio term ...``, wrapped under itself."""
    lines = textwrap.wrap(text, width - FLAG_COLUMNS)
    name, _, metavar = flag.partition(" ")
    left = Text.assemble("  ", (name, "cyan"), " ", metavar)
    if len(left) >= FLAG_COLUMNS:
        console.print(left, soft_wrap=True)
        left = Text()
    left.pad_right(FLAG_COLUMNS - len(left))
    for line in lines or [""]:
        console.print(left + Text(line), soft_wrap=True)
        left = Text(" " * FLAG_COLUMNS)


def _flag(field: Field) -> str:
    if field.types == ("bool",):
        return f"--no-{field.flag[2:]}" if field.default is True else field.flag
    if field.choices and len("|".join(field.choices)) <= FLAG_COLUMNS - len(field.flag) - 4:
        return f"{field.flag} {'|'.join(field.choices)}"
    kind = next((kind for kind in ("dict", "list[dict]", "list", "str", "float", "int") if kind in field.types), "str")
    return f"{field.flag} {_METAVARS[kind]}"


def _description(field: Field) -> str:
    """Help, the choices that did not fit beside the flag, and the default in brackets."""
    text = field.help
    if field.choices and not _flag(field).endswith("|".join(field.choices)):
        text += (
            f" One of {', '.join(field.choices)}."
            if len(field.choices) < 9
            else (f" Such as {', '.join(field.choices[:5])}, ...")
        )
    if field.types == ("bool",):
        return f"{text} [on; this switches it off]" if field.default is True else text
    default = field.default
    if default is None or default == "" or default == []:
        return text
    return f"{text} [{default:g}]" if isinstance(default, float) else f"{text} [{default}]"
