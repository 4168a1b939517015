"""Turn the result or error of a command into an exit code, a line or two on stderr, and a JSON document on stdout.

0 done | 1 failed while running | 2 bad usage or bad input | 3 a check failed | 4 a check could not tell |
75 interrupted, can be resumed | 130 interrupted twice | 141 the reader of stdout has left (system/output.py)
"""

from __future__ import annotations

import json
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from types import TracebackType
from typing import Any, NamedTuple, NoReturn

from rich.text import Text

from ...errors import DataError, Interrupted, OddsmithError, first_line, showable
from ...system.memory import OTHER_FIX, clear_memory_errors
from ...system.secrets import masked
from ...system.signals import ENDED_AT_ONCE, NothingTrained
from ..parsing.resolve import Option
from .console import is_main_process, say_error, show, stderr_console, visible

# What torch raises in a distributed run when another process is gone; gloo only raises a RuntimeError.
LOST_PEER = ("DistBackendError", "DistNetworkError")

# Flags of every command; `run` looks for them itself, so that they also work where the command line is wrong.
JSON = Option("json", "switch", "Print the result as one JSON document on stdout, and nothing else there.")
TRACEBACK = Option("traceback", "switch", "Show where in the code an error came from.")
COLUMNS = Option(
    "columns",
    "value",
    "Columns of other names, as in prompt=question,chosen=good,rejected=bad; answers.0.text leads into a column.",
    "NAME=COLUMN,...",
)
RECIPE = Option("recipe", "value", "Start from a recipe: a name of `oddsmith recipes`, or a file.", "NAME|FILE")


class Judged(NamedTuple):
    """The result of a command that checks something; its exit code is 0, 3 if the check failed, 4 if it cannot tell."""

    document: dict[str, Any]
    exit_code: int


Command = Callable[[Sequence[str]], "dict[str, Any] | Judged | int"]


def run(command: Command, arguments: Sequence[str], name: str = "") -> int:
    """Run a command on the words after its ``name``, and return its exit code.

    An error that offers columns is followed by the command with them. Unforeseen errors are not caught: they end in
    :func:`_say_unforeseen`.
    """
    as_json, with_traceback = JSON.flag in arguments, TRACEBACK.flag in arguments
    sys.excepthook = (lambda kind, error, trace: _trace(error)) if with_traceback else _say_unforeseen
    try:
        # While a JSON document is to be printed on stdout, what libraries print goes to stderr.
        with redirect_stdout(sys.stderr) if as_json else nullcontext(), clear_memory_errors(OTHER_FIX):
            result = command(arguments)
    except (OddsmithError, NothingTrained, KeyboardInterrupt) as error:
        if with_traceback:
            _trace(error)
        return _say_how_it_ended(error, as_json, _offered_command(name, arguments, error))
    if isinstance(result, int):
        return result
    document, exit_code = result if isinstance(result, Judged) else (result, 0)
    if as_json and is_main_process():
        _print_json(document)
    return exit_code


@contextmanager
def termination_as_interruption() -> Iterator[None]:
    """Handle SIGTERM like Ctrl-C in the block, so that unfinished files are removed and servers stopped."""

    def stop(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _offered_command(name: str, arguments: Sequence[str], error: BaseException) -> str:
    """Return what was typed with the columns that an error offers, ready to be pasted; empty where it offers none."""
    if not (name and isinstance(error, DataError) and error.columns):
        return ""
    from ...data.sources.naming import text_of_columns

    words, given = [], iter(arguments)
    for word in given:
        if word == COLUMNS.flag:
            next(given, None)
        elif not word.startswith(f"{COLUMNS.flag}="):
            words.append(word)
    offered = [COLUMNS.flag, text_of_columns(error.columns)]
    return masked(shlex.join(["oddsmith", *name.split(), *words, *offered]))


def _say_how_it_ended(
    error: OddsmithError | NothingTrained | KeyboardInterrupt, as_json: bool, command: str = ""
) -> int:
    """Print why a command ended, and a ``command`` that goes on; return the exit code."""
    kind = type(error).__name__
    if isinstance(error, OddsmithError):
        text, exit_code = str(error), error.exit_code
    elif isinstance(error, NothingTrained):
        text, exit_code, kind = str(error), Interrupted.exit_code, Interrupted.__name__
    else:
        text, exit_code = "ended at once, on request", ENDED_AT_ONCE
    if exit_code not in (Interrupted.exit_code, ENDED_AT_ONCE):
        say_error(text)
    elif is_main_process():  # all processes of a run are interrupted together
        say_error(text, "interrupted", "bold yellow")
    if command and is_main_process():
        stderr_console().print(Text(f"  {command}"), soft_wrap=True)  # as it is, to be pasted
    if as_json and is_main_process():
        _print_json({"error": text, "kind": kind, "exit_code": exit_code} | ({"command": command} if command else {}))
    return exit_code


def _print_json(document: dict[str, Any]) -> None:
    from ...system.strict_json import strict

    has_all_characters = (sys.stdout.encoding or "").lower().startswith("utf")
    text = json.dumps(strict(document), allow_nan=False, ensure_ascii=not has_all_characters)
    # Of what JSON leaves as it is, the characters that steer a terminal: all lie within strings.
    show(text if text == visible(text) else json.dumps(strict(document), allow_nan=False))


def _trace(error: BaseException) -> None:
    """Print the traceback of an error, with secrets masked: frames and causes may quote one."""
    sys.stderr.write(visible(masked("".join(traceback.format_exception(error)))))


def _say_unforeseen(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print one line instead of a traceback, for errors that should not have happened."""
    said = first_line(error)
    if kind.__name__ in LOST_PEER or ("gloo" in said and "peer" in said):
        say_error("another process of this run has ended; its output, or that of its launcher, says why")
        return
    what = f"{kind.__name__}: {said}" if said else kind.__name__
    say_error(f"{showable(what)}\nThis was not foreseen; run again with --traceback to see where it came from.")
