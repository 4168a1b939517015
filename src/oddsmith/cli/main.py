"""List the subcommands of ``oddsmith``, and run one of them; its module is imported only then.

Nothing here imports torch, so that help and typing mistakes are answered at once. docs/decisions/command-line.md says
why the command line is read by our own code.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module

from .. import __version__
from ..errors import OutputError, UsageError
from ..system.output import guard_output
from .command_table import COMMANDS, GROUPS
from .terminal.console import say_error, show
from .terminal.outcome import run

# Names that users try for a command.
MEANT = {
    **dict.fromkeys(("finetune", "fine-tune", "fit", "run", "orpo"), "train"),
    **dict.fromkeys(("evaluate", "test", "measure", "benchmark"), "eval"),
    **dict.fromkeys(("merge", "convert-gguf", "gguf", "quantize", "save"), "export"),
    **dict.fromkeys(("ask", "talk", "generate", "predict", "infer"), "chat"),
    **dict.fromkeys(("check", "validate", "lint"), "data check"),
    **dict.fromkeys(("make", "generate-data", "synthesize"), "data make"),
    **dict.fromkeys(("watch", "board", "dashboard", "ui", "plot"), "monitor"),
    **dict.fromkeys(("sweep", "search", "hpo"), "tune"),
    **dict.fromkeys(("estimate", "predict-memory", "memory"), "plan"),
    **dict.fromkeys(("env", "info", "debug", "status", "system"), "doctor"),
    **dict.fromkeys(("quickstart", "example", "start", "try"), "demo"),
    **dict.fromkeys(("init", "recommend", "new"), "advise"),
    **dict.fromkeys(("api", "server"), "serve"),
}
# Shown without arguments, in this order.
TO_BEGIN_WITH = {
    "demo": "align a small chat model on this machine, in minutes: nothing else is needed",
    "data check PAIRS": "find faults in your preference pairs",
    "advise MODEL PAIRS": "write a recipe for a model and its pairs",
    "train recipe.yaml": "train, with checkpoints that a stop never loses",
    "chat RUN": "talk to the result",
}
SUBJECT = "One-step preference alignment of language models (ORPO)."
ALL_COMMANDS = "`oddsmith help` lists all commands, `oddsmith help COMMAND` says more."
HELP_FLAGS = ("--help", "--help-all", "-h")
EXIT_CODES = (
    "`oddsmith COMMAND --help` says more. Exit codes: 0 done, 1 failed, 2 bad usage or input, 3 a check failed,"
    " 4 a check could not tell, 75 interrupted and resumable, 130 interrupted twice, 141 the reader of stdout left."
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the words after ``oddsmith`` name (``sys.argv`` by default), and exit with its exit code."""
    guard_output()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = _dispatch(words[1:] if words[:1] == ["--"] else words, group="")
        sys.stdout.flush()
    except OutputError as error:
        say_error(str(error))
        code = error.exit_code
    sys.exit(code)


def _dispatch(words: list[str], group: str) -> int:
    """Run the command that the words name, or print the overview of a group (``""``: all); return the exit code."""
    word = words[0] if words else ""
    name = f"{group} {word}".strip()
    if not words:
        _print_beginning() if not group else _print_overview(group, to_stderr=True)
        return UsageError.exit_code
    if word == "help" and not group:
        return _help(words[1:])
    if word in HELP_FLAGS:
        _print_overview(group)
        return 0
    if word in ("--version", "version") and not group:
        show(f"oddsmith {__version__}")
        return 0
    if name in GROUPS:
        return _dispatch(words[1:], group=name)
    if name in COMMANDS:
        return _run(name, words[1:])
    say_error(_unknown(word, group))
    return UsageError.exit_code


def _help(words: list[str]) -> int:
    """Print what `oddsmith help COMMAND` asks for; all commands without one."""
    known = [name for name in (*COMMANDS, *GROUPS) if words[: len(name.split())] == name.split()]
    if words and not known:
        say_error(_unknown(words[0], ""))
        return UsageError.exit_code
    return _dispatch([*(max(known, key=len).split() if known else ()), "--help"], group="")


def _run(name: str, words: list[str]) -> int:
    command = COMMANDS[name]
    module = import_module(f".commands.{command.module}", __package__)
    if not set(HELP_FLAGS) & set(words):
        return run(getattr(module, command.function), words, name)
    from .parsing.help import print_help
    from .parsing.schema import load_fields

    names = getattr(module, "SETTINGS_IN_HELP", ())
    fields = {name: field for name, field in load_fields().items() if names is None or name in names}
    everything = "--help-all" in words or names is not None
    print_help(module.USAGE, module.INTRO, module.OPTIONS, fields, everything)
    return 0


def _members(group: str) -> dict[str, str]:
    """Return the commands of a group, and the groups in it: name -> summary."""
    found = {name: command.summary for name, command in COMMANDS.items()} | GROUPS
    start = f"{group} " if group else ""
    inside = {name[len(start) :]: summary for name, summary in found.items() if name.startswith(start)}
    return {name: summary for name, summary in inside.items() if " " not in name}


def _print_beginning() -> None:
    """Print the five commands to begin with."""
    from .parsing.help import print_entries

    entries = {f"oddsmith {name}": text for name, text in TO_BEGIN_WITH.items()}
    print_entries("oddsmith COMMAND ...", SUBJECT, {"To begin with": entries}, ALL_COMMANDS, to_stderr=True, columns=33)


def _print_overview(group: str, to_stderr: bool = False) -> None:
    from .parsing.help import print_entries

    usage = f"oddsmith {group} COMMAND ..." if group else "oddsmith COMMAND ..."
    intro = GROUPS[group] if group else SUBJECT
    flags = {"--help": "Show this help and end."} | ({} if group else {"--version": "Print the version and end."})
    parts = {"Commands": _members(group), "Flags": flags}
    print_entries(usage, intro, parts, "" if group else EXIT_CODES, to_stderr=to_stderr)


def _unknown(word: str, group: str) -> str:
    """Word the error for an unknown command or flag, with the most similar one."""
    is_flag = word.startswith("-")
    flags = ["--help"] if group else ["--help", "--version"]
    known = flags if is_flag else list(_members(group))
    nearest = [MEANT[word]] if word in MEANT and not group else difflib.get_close_matches(word, known, n=1)
    hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
    what = f"No such flag {word}." if is_flag else f"No such command '{word}'."
    return f"{what}{hint} `oddsmith --help` lists the commands and flags."


if __name__ == "__main__":
    main()
