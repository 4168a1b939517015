"""``oddsmith completion``: print a script that lets bash, zsh or fish complete commands, flags, choices and files.

``shtab`` writes the scripts; here a parser of ``argparse`` is made of our own tables for it, and parses nothing.
"""

from __future__ import annotations

from argparse import SUPPRESS, ArgumentParser
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any

from ...errors import ConfigError
from ..command_table import COMMANDS, GROUPS
from ..parsing.resolve import Option, resolve_word
from ..parsing.schema import Field, load_fields
from ..terminal.console import quiet_libraries, show
from ..terminal.outcome import TRACEBACK

SHELLS = ("bash", "zsh", "fish")
USAGE = f"oddsmith completion {'|'.join(SHELLS)}"
INTRO = (
    "Prints what lets a shell complete commands, flags, choices and files. Once:",
    "bash: oddsmith completion bash > ~/.local/share/bash-completion/completions/oddsmith",
    "zsh: oddsmith completion zsh > ~/.zfunc/_oddsmith, with fpath+=~/.zfunc before compinit in ~/.zshrc",
    "fish: oddsmith completion fish > ~/.config/fish/completions/oddsmith.fish",
)
OPTIONS = (TRACEBACK,)
OF_FILES = ("FILE", "PATH", "FOLDER", "MODEL", "DATASET", ".jsonl", "auto|PATH")  # in what the help calls a value
SETTINGS_THAT_ARE_PATHS = frozenset({"model_name_or_path", "dataset_name", "eval_dataset_name", "output_dir"})


def completion(arguments: Sequence[str]) -> int:
    """Run ``oddsmith completion``; return 0."""
    quiet_libraries()
    shell, _ = resolve_word(arguments, OPTIONS, "shell", USAGE)
    if shell not in SHELLS:
        raise ConfigError(f"the shell is {shell!r}; expected {', '.join(SHELLS[:-1])} or {SHELLS[-1]}")
    import shtab

    show(shtab.complete(_parser(), shell))
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser("oddsmith")
    parser.add_argument("--version", action="store_true", help="Print the version and end.")
    commands: Any = parser.add_subparsers()
    groups: dict[str, Any] = {}
    for group, summary in GROUPS.items():
        groups[group] = commands.add_parser(group, help=summary, description=summary).add_subparsers()
    fields = load_fields()
    for name, command in COMMANDS.items():
        group, _, last = name.rpartition(" ")
        module = import_module(f".{command.module}", __package__)
        own = groups[group] if group else commands
        made = own.add_parser(last, help=command.summary, description=command.summary)
        names = getattr(module, "SETTINGS_IN_HELP", ())
        taken = [field for field in fields.values() if field.listed and (names is None or field.name in names)]
        _add_flags(made, module.OPTIONS, taken)
        values = made.add_argument("words", nargs="*", help=SUPPRESS)
        _complete_files(values)
        if name == "completion":
            values.choices = SHELLS
    return parser


def _add_flags(parser: ArgumentParser, options: Iterable[Option], fields: Iterable[Field]) -> None:
    taken = set()
    for option in options:
        taken.add(option.name)
        added = parser.add_argument(option.flag, help=_plain(option.help), **_arity(option.kind))
        words = option.metavar.split("|")
        if len(words) > 1 and all(word.islower() or "_" in word for word in words):
            added.choices = words
        elif any(mark in option.metavar for mark in OF_FILES):
            _complete_files(added)
    for field in fields:
        if field.name in taken:
            continue
        is_switch = field.types == ("bool",)
        flag = f"--no-{field.flag[2:]}" if is_switch and field.default is True else field.flag
        added = parser.add_argument(flag, help=_plain(field.help), **_arity("switch" if is_switch else "value"))
        if field.choices:
            added.choices = list(field.choices)
        elif field.name in SETTINGS_THAT_ARE_PATHS:
            _complete_files(added)


def _arity(kind: str) -> dict[str, Any]:
    """Return how many values a flag takes, in argparse's words."""
    return {"switch": {"action": "store_true"}, "optional": {"nargs": "?"}}.get(kind, {})


def _complete_files(action: Any) -> None:
    import shtab

    action.complete = shtab.FILE


def _plain(text: str) -> str:
    return text.replace("%", "%%")
