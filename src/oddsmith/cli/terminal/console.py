"""Print messages on stderr, from one of the processes of a run alone, and results on stdout.

What is printed may quote a file, a name or a model of somebody else, so all of it goes through ``visible``:
``tests/test_architecture.py`` allows no other ``print`` in the command line.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import textwrap
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from ...model.loading.quiet import hush_dependencies
from ...system.files import dispensable
from ...system.outside import open_file
from ...system.secrets import masked
from .one_voice import is_left_to_first, tell_others

# Characters that move the cursor or worse when they reach a terminal, and those that reverse the order of the others.
_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """Write out the characters that steer a terminal, as in ``\\x1b``; ends of lines and tabs stay."""
    return _STEERING.sub(lambda match: repr(match[0])[1:-1], text)


MAX_RECORDED = 1000  # lines, before there is a file for them
SILENT_S = 2.0  # how long nothing may be said
OF_A_NOTEBOOK = "JPY_PARENT_PID"  # in the environment of what the kernel of a notebook starts
STARTING = "loading PyTorch and transformers"


class _Console(Console):
    """A console that writes out what would steer the terminal in a text; its own control codes are no texts."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else visible(text), style, control)


def stdout_console(max_width: int | None = None) -> Console:
    """Return a console for results, at most ``max_width`` columns wide, that prints texts unchanged."""
    console = _Console(highlight=False, markup=False, emoji=False)
    if max_width is not None:
        console.width = min(console.width, max_width)
    return console


@cache
def stderr_console() -> Console:
    """Return the console for all messages: one for the process, so that they do not break up a live line."""
    return _Console(stderr=True, highlight=False, markup=False, emoji=False)


def is_live() -> bool:
    """Return whether stderr is a terminal that can redraw a line."""
    return can_redraw(stderr_console())


def can_redraw(console: Console) -> bool:
    """Return whether a console is a terminal that can redraw a line.

    A notebook gives what it runs (``!oddsmith ...``) a terminal, and keeps every drawing of a line.
    """
    return console.is_terminal and not console.is_dumb_terminal and OF_A_NOTEBOOK not in os.environ


def is_main_process() -> bool:
    """Return whether this process prints: the first of a distributed run, or the only one."""
    return os.environ.get("RANK", "0") == "0"


class _Record:
    """What was said so far, until a run has a file for it, and then that file."""

    def __init__(self) -> None:
        self.file: Path | None = None
        self.lines: deque[str] = deque(maxlen=MAX_RECORDED)


_RECORD = _Record()


def record(text: str) -> None:
    """Keep lines, with the time and without secrets, for the record of what this command printed: ``recording``."""
    if not is_main_process():
        return
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    lines = [f"{now}  {line}" for line in visible(masked(text)).split("\n")]
    if _RECORD.file is None:
        _RECORD.lines.extend(lines)
    else:
        _append(_RECORD.file, lines)


@contextmanager
def recording() -> Iterator[None]:
    """Record what is said in the block, and the error that ends it; ``record_into`` says where, once that is known."""
    _RECORD.lines.clear()
    try:
        yield
    except BaseException as error:
        record(f"{type(error).__name__}: {error}")
        raise
    finally:
        _RECORD.file = None
        _RECORD.lines.clear()


def record_into(file: Path) -> None:
    """Append to a file what was said in the block of ``recording`` so far, and from now on."""
    if is_main_process():
        said = list(_RECORD.lines)
        _RECORD.lines.clear()
        _append(file, said)


def _append(file: Path, lines: Iterable[str]) -> None:
    content = "".join(f"{line}\n" for line in lines).encode("utf-8", errors="replace")
    _RECORD.file = None  # a warning that the file cannot be written is not written into it
    with (
        dispensable(file, "what is printed is not kept for the monitor"),
        open_file(file, "ab", follow=False, buffering=0) as opened,
    ):
        opened.write(content)
        _RECORD.file = file


def say(text: str = "", style: str = "", hang: int = 0) -> None:
    """Print lines on stderr, from the main process only; a terminal wraps them, and indents the rest by ``hang``.

    ``style`` is a style of rich, such as ``"bold"``.
    """
    if not is_main_process():
        return
    console = stderr_console()
    record(text)
    for line in visible(text).split("\n"):
        if is_live() and len(line) > console.width:
            line = textwrap.fill(line, console.width, subsequent_indent=" " * hang)
        console.print(Text(line, style=style), soft_wrap=True)


def keep(text: str, hang: int = 0) -> None:
    """Print the outcome of a run, which is worth keeping: on stderr, and on stdout as well where that is no terminal.

    Who sends stdout into a file or to another program gets it there, and a terminal shows it still.
    """
    if is_main_process() and not sys.stdout.isatty():
        show(text)
    if is_live() or sys.stdout.isatty():
        say(text, hang=hang)
    else:
        record(text)


def show(text: str = "", end: str = "\n") -> None:
    """Print a result on stdout, at once, as it stands but for what would steer a terminal."""
    print(visible(text), end=end, flush=True)


def show_line(line: str) -> None:
    """Print a line of a result on stdout; a terminal wraps it, with the rest indented below its beginning."""
    console, line = stdout_console(), visible(line)
    if console.is_terminal and len(line) > console.width:
        indent = " " * (len(line) - len(line.lstrip()) + 4)
        line = textwrap.fill(line, console.width, subsequent_indent=indent)
    show(line)


def say_error(text: str, label: str = "error", style: str = "bold red", *, may_be_shared: bool = True) -> None:
    """Print an error on stderr, from any process, but once where all processes of a run share it."""
    if may_be_shared and is_left_to_first(text):
        return
    record(f"{label}: {text}")
    stderr_console().print(Text.assemble((f"{label}:", style), " ", visible(text)), soft_wrap=not is_live())
    if may_be_shared:
        tell_others(text)


@contextmanager
def working(what: str) -> Iterator[None]:
    """Say what is being done while the block runs: a terminal at once, others if it takes longer than ``SILENT_S``."""
    if not is_main_process():
        yield
    elif is_live():
        with stderr_console().status(what, spinner="dots"):
            yield
    else:
        timer = threading.Timer(SILENT_S, say, [what])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


class _Warnings(logging.Handler):
    """Prints the warnings of our own modules like other messages, so that they do not break up a live line."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.funcName == "choose_path":  # the banner has a line for it
            return
        if record.levelno >= logging.ERROR:
            say_error(record.getMessage(), may_be_shared=False)
        else:
            say(f"warning: {record.getMessage()}", "yellow", hang=4)


_WARNINGS = _Warnings(logging.WARNING)


def quiet_libraries() -> None:
    """Suppress the libraries' warnings, and their progress bars where there is no terminal; print our own warnings.

    Call it before the libraries are imported: some print at their import.
    """
    hush_dependencies()
    logging.getLogger(__package__.partition(".")[0]).addHandler(_WARNINGS)
    if not sys.warnoptions:  # these announce changes that only authors of libraries can act on
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
    if not is_main_process():  # what libraries warn of, they warn of in every process
        warnings.simplefilter("ignore")
        logging.getLogger().setLevel(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if not is_live():
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
