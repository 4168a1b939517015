"""Every error Oddsmith raises on purpose.

    OddsmithError                     exit code 1
    ├── UsageError (ValueError)       exit code 2   something the user gave is wrong
    │   ├── ConfigError               a setting: unknown, of the wrong type, out of range, contradictory
    │   ├── DataError                 a dataset: missing, unreadable, empty, of an unknown format
    │   │   └── RowError              one row of it, by number
    │   │       └── UndecidedRow      a row that prefers neither answer: left out and counted, no fault
    │   ├── ModelError                a model or tokenizer: missing, unsuitable, unknown adapter target
    │   ├── CheckpointError           a checkpoint to resume from: missing, damaged, or of another run
    │   ├── NotAFileError (OSError)   a link, pipe, socket or device where a file of the user's is expected
    │   └── MissingExtraError         an optional dependency; the message is the install command
    ├── SaveError                     a checkpoint, or a log, could not be written; what was written before is complete
    ├── OutOfMemoryError              a ``MemoryError``: of the machine, or of the device
    ├── WorkerError                   a process of ours ended by itself: a worker of a data loader, a training
    ├── ExportError                   an export failed: no room for it, or its result differs from its source
    ├── ServerError                   a server that was started or asked did not answer, or ended
    ├── OutputError                   a result could not be printed on stdout
    ├── NonFiniteError                a log-probability became NaN or infinite while training
    └── Interrupted                   exit code 75  stopped on request; the run can be resumed

A message is one or two lines: where it is (file, line, row or field), what was found, what was expected, what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from errno import EINVAL
from os import PathLike, fspath
from types import MappingProxyType
from typing import Self

from .system.secrets import masked

# Characters of a long message that are shown from its beginning and from its end.
SHOWN_BEGINNING, SHOWN_END = 1_000, 400


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says; empty where it says nothing."""
    return next(iter(str(error).strip().splitlines()), "").strip()


def showable(message: str) -> str:
    """Return a message as a terminal may show it, as it may quote any file or name.

    It is on one line, without secrets, with escapes for control characters and halves of surrogate pairs, and without
    its middle where it is very long.
    """
    message = masked(" ".join(line.strip() for line in message.strip().split("\n")))
    if len(message) > SHOWN_BEGINNING + SHOWN_END:
        message = f"{message[:SHOWN_BEGINNING]} ... {message[-SHOWN_END:]}"
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in message)


def in_a_line(error: BaseException) -> str:
    """Return the type of an error and the first line of what it says, as a terminal may show it."""
    return f"{type(error).__name__}: {showable(first_line(error))}"


class OddsmithError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = 1

    def __str__(self) -> str:
        return showable(super().__str__())


class UsageError(OddsmithError, ValueError):
    """Something the user gave is wrong. A ``ValueError``, as users of transformers expect."""

    exit_code = 2


class ConfigError(UsageError):
    """A setting is unknown, of the wrong type, out of range, or contradicts another."""


class DataError(UsageError):
    """A dataset is missing, unreadable, empty, or of an unknown format.

    ``columns`` may say which of its columns are probably meant, by name: a value of the setting ``columns``.
    """

    columns: Mapping[str, str] = MappingProxyType({})

    def offering(self, columns: Mapping[str, str]) -> Self:
        """Set the columns that are probably meant; return the error itself."""
        self.columns = dict(columns)
        return self


class RowError(DataError):
    """One row of a dataset cannot become a preference pair.

    Args:
        reason: What is wrong, as a short noun phrase that can be counted, e.g. ``"unknown role"``.
        detail: What was found and what was expected, for the message.
        row: Zero-based row number in its dataset, once known.
        source: File or dataset name, once known.
    """

    def __init__(self, reason: str, detail: str, row: int | None = None, source: str | None = None):
        self.reason, self.detail, self.row, self.source = reason, detail, row, source
        super().__init__(reason, detail, row, source)

    def __str__(self) -> str:
        where = ", ".join(part for part in (self.source, f"row {self.row}" if self.row is not None else None) if part)
        return showable(f"{where}: {self.reason}: {self.detail}" if where else f"{self.reason}: {self.detail}")


class UndecidedRow(RowError):
    """A row prefers neither answer, as rows of comparisons do: a tie, no judgement, one answer only.

    It is left out and counted whatever ``bad_rows`` says.
    """


class ModelError(UsageError):
    """A model or tokenizer is missing or cannot be used for ORPO."""


class CheckpointError(UsageError):
    """A checkpoint cannot be resumed from: it is missing, damaged, or of a run with other data, settings or base."""


class NotAFileError(UsageError, OSError):
    """A path leads to a pipe, a socket or a device, or to a link where none may be; opening it might never return.

    An ``OSError`` too, so whoever reports that a file cannot be read reports this.

    Args:
        path: The path.
        found: What is there and what was expected, e.g. ``"a pipe, not a file"``.
    """

    def __init__(self, path: str | PathLike[str], found: str):
        super().__init__(fspath(path), found)
        self.errno, self.strerror = EINVAL, f"is {found}"

    def __str__(self) -> str:
        return showable(f"{self.args[0]}: {self.strerror}")


class MissingExtraError(UsageError, ImportError):
    """An optional dependency is not installed.

    Args:
        what: The feature that needs it.
        extra: Name of the extra, as in ``pip install "oddsmith[4bit]"``.
        package: What to install where no extra of ours has it.
        otherwise: What else would do, appended to the install command; where neither extra nor package is named, why
            nothing can be installed.
    """

    def __init__(self, what: str, extra: str = "", package: str = "", otherwise: str = ""):
        super().__init__(what, extra, package, otherwise)  # all of them, to come whole out of another process

    def __str__(self) -> str:
        what, extra, package, otherwise = self.args
        install = package or (f'"oddsmith[{extra}]"' if extra else "")
        ways = [f"install it with: pip install {install}"] if install else []
        ways += [otherwise] if otherwise else []
        return showable(f"{what} needs an optional dependency; {', or, '.join(ways)}")


class SaveError(OddsmithError):
    """A checkpoint could not be written: its files are no checkpoint, and the last one before it is complete. Or a log.

    Args:
        message: Why, what is left, and what to do.
        folder_is_gone: Whether the run folder was removed while the checkpoint was being written.
    """

    def __init__(self, message: str, folder_is_gone: bool = False):
        super().__init__(message)
        self.folder_is_gone = folder_is_gone


class OutOfMemoryError(OddsmithError, MemoryError):
    """The memory of the machine or of the device is too small; the message says what to lower."""


class WorkerError(OddsmithError):
    """A process of ours ended by itself, so what it was to make never comes: the batches of a data loader, a run."""


class ExportError(OddsmithError):
    """An export could not be written, or does not compute the same as its source."""


class ServerError(OddsmithError):
    """A server that was started did not come up, or ended, and the message has the end of its output; or one that is
    asked for answers cannot be used, or not any more.
    """


class OutputError(OddsmithError):
    """A result could not be printed on stdout, as on a full disk; a reader of a pipe that has left is no error."""


class NonFiniteError(OddsmithError):
    """A log-probability became NaN or infinite; the message names the rows that produced it."""


class Interrupted(OddsmithError):
    """The run was stopped on request after a step was finished; it can be resumed."""

    exit_code = 75
