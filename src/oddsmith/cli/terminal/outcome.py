"""From what happened to what the shell gets: an exit code, one or two lines on stderr, one JSON document on stdout.

0 done | 1 failed while running | 2 bad usage or bad input | 3 a gate said no | 75 interrupted, can be resumed |
130 interrupted twice
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from types import TracebackType
from typing import Any, NamedTuple

from ...errors import Interrupted, OddsmithError
from ...system.memory_errors import ANY_CURE, clear_memory_errors
from ...system.secrets import masked
from ...system.signals import ENDED_AT_ONCE, NothingTrained
from ..parsing.resolve import Option
from .console import is_main_process, say_error

# What torch raises in a process of a distributed run whose peer is gone; gloo raises a mere RuntimeError.
LOST_PEER = ("DistBackendError", "DistNetworkError")

# Flags that every command has; they are read here and in `run`, before anything can go wrong.
JSON = Option("json", "switch", "Print the result as one JSON document on stdout, and nothing else there.")
TRACEBACK = Option("traceback", "switch", "Show where in the code an error came from.")


class Judged(NamedTuple):
    """The result of a command that judges something, and the exit code that says how.

    Args:
        document: The result as JSON values.
        exit_code: 0, or 3 where the answer is no.
    """

    document: dict[str, Any]
    exit_code: int


Command = Callable[[Sequence[str]], "dict[str, Any] | Judged | int"]


def run(command: Command, arguments: Sequence[str]) -> int:
    """Run a command to its exit code.

    Args:
        command: Takes the words after its name; returns its result, its judgement, or the exit code of processes that
            it started.
        arguments: Those words.

    Returns:
        The exit code. Errors that nobody foresaw are not caught: they end in :func:`_say_unforeseen`.
    """
    as_json, with_traceback = JSON.flag in arguments, TRACEBACK.flag in arguments
    sys.excepthook = _trace_unforeseen if with_traceback else _say_unforeseen
    try:
        with _stdout_for_json(as_json), clear_memory_errors(ANY_CURE):
            result = command(arguments)
    except (OddsmithError, NothingTrained, KeyboardInterrupt) as error:
        if with_traceback:
            _trace(error)
        return _say_how_it_ended(error, as_json)
    if isinstance(result, int):
        return result
    document, exit_code = result if isinstance(result, Judged) else (result, 0)
    if as_json and is_main_process():
        _print_json(document)
    return exit_code


def _say_how_it_ended(error: OddsmithError | NothingTrained | KeyboardInterrupt, as_json: bool) -> int:
    """Say why a command ended; returns its exit code."""
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
    if as_json and is_main_process():
        _print_json({"error": text, "kind": kind, "exit_code": exit_code})
    return exit_code


@contextmanager
def _stdout_for_json(as_json: bool) -> Iterator[None]:
    """Send what libraries print on stdout to stderr while a JSON document is owed there."""
    if not as_json:
        yield
        return
    with redirect_stdout(sys.stderr):
        yield


def _print_json(document: dict[str, Any]) -> None:
    from ...system.strict_json import strict

    print(json.dumps(strict(document), allow_nan=False, ensure_ascii=False), flush=True)


def _trace(error: BaseException) -> None:
    """The traceback of an error; what its frames and causes quote may hold a secret."""
    print(masked("".join(traceback.format_exception(error))), end="", file=sys.stderr)


def _trace_unforeseen(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    _trace(error)


def _say_unforeseen(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """One line instead of a traceback, for errors that should not have happened."""
    first_line = next(iter(str(error).strip().splitlines()), "")
    if kind.__name__ in LOST_PEER or ("gloo" in first_line and "peer" in first_line):
        say_error("another process of this run is gone; it, or whoever started it, says why")
        return
    what = f"{kind.__name__}: {first_line}" if first_line else kind.__name__
    say_error(f"{masked(what)}\nThis was not foreseen; run again with --traceback to see where it came from.")
