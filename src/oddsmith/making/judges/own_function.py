"""Score answers by a function of the user's own: ``python:MODULE:FUNCTION``, found from the working directory.

    def score(prompt, answer) -> float

``prompt`` is the text of the question, or the list of its messages where it has several turns or a system message; a
first parameter named ``messages`` gets the list in any case. A parameter named ``row`` gets the row of the prompt.
None and NaN mean that it cannot tell.
"""

from __future__ import annotations

import copy
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module, invalidate_caches
from pathlib import Path
from typing import Any

from ...data.formats.messages import Message
from ...errors import ConfigError, OddsmithError, in_a_line
from ...system.outside import read_text
from ..records import Answer, Asked, Question, Said, Score, digest_of


class OwnFunction:
    """A judge that calls a function."""

    def __init__(self, name: str, function: Callable[..., Any], file: str):
        self.name, self._function, self._file = name, function, file
        try:
            parameters = list(inspect.signature(function).parameters)
        except (TypeError, ValueError):  # some functions in C
            parameters = []
        self._wants_messages, self._wants_row = parameters[:1] == ["messages"], "row" in parameters
        self._code = read_text(file, errors="replace") if Path(file).suffix == ".py" and Path(file).is_file() else ""

    def basis(self, question: Question) -> str:
        """Return a digest of the file of the function, and of the row where the function looks at it."""
        return digest_of(self._code, dict(question.row) if self._wants_row else None)

    def score(self, asked: Sequence[Asked]) -> Iterator[tuple[int, Said]]:
        """Score answers one by one; what the function raises is a ``ConfigError``."""
        for position, one in enumerate(asked):
            for place in one.missing:
                yield position, {place: self._score(one.question, one.answers[place])}

    def _score(self, question: Question, answer: Answer) -> Score:
        # Copies: a function that puts the answer behind the messages must change no prompt.
        messages = copy.deepcopy(question.messages)
        prompt = messages if self._wants_messages else prompt_of(messages)
        options = {"row": copy.deepcopy(dict(question.row))} if self._wants_row else {}
        with _explained(self.name, self._file):
            value = self._function(prompt, answer.text, **options)
        if value is None:
            return Score(None, "the function returned None")
        if not hasattr(value, "__float__"):  # texts have none; those of numpy and torch with one number have it
            raise ConfigError(f"{self.name}: returned {type(value).__name__}; expected a number, or None")
        with _explained(self.name, self._file):
            value = float(value)
        return Score(value) if math.isfinite(value) else Score(None, f"the function returned {value}")


def prompt_of(messages: list[Message]) -> str | list[Message]:
    """Return the text of a question that is a single message, else its messages."""
    return messages[0]["content"] if len(messages) == 1 else messages


def open_judge(kind: str, rest: str, *, name: str, concurrency: int = 1) -> OwnFunction:
    """Import the function ``MODULE:FUNCTION``.

    Where there is none, or importing its module fails, that is a ``ConfigError``.
    """
    module_name, _, function_name = rest.partition(":")
    if not all(part.isidentifier() for part in module_name.split(".")) or not function_name.isidentifier():
        raise ConfigError(f"{name}: names no function; expected python:MODULE:FUNCTION, such as python:mine:score")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    invalidate_caches()
    file = str(Path(*module_name.split(".")).with_suffix(".py"))
    with _explained(name, file):
        try:
            module = import_module(module_name)
        except ModuleNotFoundError as error:
            if module_name.split(".")[0] != error.name:
                raise
            raise ConfigError(
                f"{name}: no module {module_name}; expected {file} in this folder, or a package"
            ) from None
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ConfigError(f"{name}: {file} has no function {function_name}")
    return OwnFunction(name, function, getattr(module, "__file__", None) or file)


@contextmanager
def _explained(name: str, file: str) -> Iterator[None]:
    """Raise a ``ConfigError`` with the line of the user's file in which something was raised."""
    try:
        yield
    except OddsmithError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, SyntaxError) and error.filename:
            place = f"{Path(error.filename).name}, line {error.lineno}"
        else:
            frames = traceback.extract_tb(error.__traceback__)
            own = [frame for frame in frames if Path(frame.filename).name == Path(file).name]
            place = Path(file).name + (f", line {own[-1].lineno}" if own else "")  # none where it cannot be called
        raise ConfigError(f"{name}: {place}: {in_a_line(error)}") from error
