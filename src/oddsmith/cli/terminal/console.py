"""What the command says: plain sentences on stderr, results on stdout; one voice of however many processes."""

from __future__ import annotations

import logging
import os
import sys
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from rich.console import Console
from rich.text import Text

from ...model.loading.quiet import hush_dependencies


@cache
def stderr_console() -> Console:
    """The console of all talk. One for the process, so that lines printed beside a live line do not tear it."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def is_live() -> bool:
    """Whether stderr is a terminal that can redraw a line."""
    console = stderr_console()
    return console.is_terminal and not console.is_dumb_terminal


def is_main_process() -> bool:
    """Whether this process speaks: the first of a distributed run, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str = "", style: str = "", hang: int = 0) -> None:
    """Print on stderr; the other processes of a run stay silent.

    Args:
        text: One line or several. A terminal gets them wrapped, a file as they are.
        style: Style of rich, e.g. ``"bold"``.
        hang: Columns that the rest of a wrapped line is indented by.
    """
    if not is_main_process():
        return
    console = stderr_console()
    for line in text.split("\n"):
        if is_live() and len(line) > console.width:
            line = textwrap.fill(line, console.width, subsequent_indent=" " * hang)
        console.print(Text(line, style=style), soft_wrap=True)


def say_error(text: str, label: str = "error", style: str = "bold red") -> None:
    """Print an error on stderr; every process may."""
    stderr_console().print(Text.assemble((f"{label}:", style), " ", text), soft_wrap=not is_live())


@contextmanager
def working(what: str) -> Iterator[None]:
    """Show on a terminal what is being done; elsewhere stay silent."""
    if is_live() and is_main_process():
        with stderr_console().status(what, spinner="dots"):
            yield
    else:
        yield


class _Warnings(logging.Handler):
    """What our own modules warn of, said as everything else is; else it would tear a line that is drawn just then."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.funcName == "choose_path":  # the banner has a line for it
            return
        say(f"warning: {record.getMessage()}", "yellow", hang=4)


_WARNINGS = _Warnings(logging.WARNING)


def quiet_libraries() -> None:
    """Let the libraries speak only of errors, and draw no bars where nobody watches them. We say our own warnings.

    To be called before they are imported: some speak at their import.
    """
    hush_dependencies()
    logging.getLogger(__package__.partition(".")[0]).addHandler(_WARNINGS)
    if not sys.warnoptions:  # what libraries tell each other about their next versions
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if not is_live():
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
