"""Keep what cannot be printed from ending a run, and from ending a command as if its result had been printed.

A message goes to a terminal that hangs up, a pipe whose reader leaves, a file on a disk that becomes full: it is lost,
and the work goes on. A result on stdout that is lost is an error, or a quiet end where its reader has left.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TextIO

from ..errors import OutputError
from .files import in_words

READER_LEFT = 141  # exit code, which shells show for a program that SIGPIPE has ended
PATIENCE_S = 1.0  # for the reader of a pipe that does not block: after that, messages are dropped until it reads on
STREAMS = {"stdout": 1, "stderr": 2}


def guard_output() -> None:
    """Guard the standard streams of this process, for good: stdout is for results, stderr for messages.

    Streams that were replaced, as by a test, stay as they are.
    """
    _open_closed_descriptors()
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False), encoding="utf-8")
    for name in STREAMS:
        if getattr(sys, name) is getattr(sys, f"__{name}__"):
            setattr(sys, name, _guarded(name, is_result=name == "stdout"))


@contextmanager
def printing_may_fail() -> Iterator[None]:
    """Lose whatever cannot be printed in the block, on stdout too, without an error.

    Streams that were replaced, as in a notebook, stay as they are.
    """
    _open_closed_descriptors()
    with ExitStack() as stack:
        for name in STREAMS:
            stream = getattr(sys, name)
            if stream is getattr(sys, f"__{name}__"):
                guarded = _guarded(name, is_result=False)
                setattr(sys, name, guarded)
                stack.callback(_put_back, name, guarded, stream)
            elif isinstance(descriptor := getattr(stream, "buffer", None), _Descriptor):
                stack.callback(setattr, descriptor, "is_result", descriptor.is_result)
                stack.callback(stream.flush)  # before that: what was printed in the block
                descriptor.is_result = False
        yield


def _open_closed_descriptors() -> None:
    """Open standard descriptors that are closed, so that no file takes their place and gets what is printed there.

    Writing to them stays an error.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDONLY), True)  # the lowest number that is free


def _put_back(name: str, guarded: TextIO, before: TextIO | None) -> None:
    guarded.flush()
    if getattr(sys, name) is guarded:
        setattr(sys, name, before)


def _guarded(name: str, *, is_result: bool) -> TextIO:
    """Return a stream over a standard descriptor that is as the process's own, but for its errors."""
    own: Any = getattr(sys, name)
    if own is not None:
        with suppress(OSError):
            own.flush()
    return io.TextIOWrapper(
        _Descriptor(STREAMS[name], is_result),
        encoding=getattr(own, "encoding", "utf-8"),
        errors="backslashreplace",  # a name or a text may have what the encoding lacks
        line_buffering=getattr(own, "line_buffering", True),
        write_through=getattr(own, "write_through", False),
    )


class _Descriptor(io.FileIO):
    """A standard descriptor that writes all or, where that is no error, pretends to."""

    def __init__(self, number: int, is_result: bool):
        super().__init__(number, "wb", closefd=False)
        self.is_result = is_result
        self._is_stuck = False

    def write(self, data: Any) -> int:
        size = len(data)
        try:
            self._write_all(memoryview(data))
        except OSError as error:
            if self.is_result:
                self.is_result = False  # one error is enough: Python flushes once more at its end
                if error.errno == errno.EPIPE:
                    raise SystemExit(READER_LEFT) from error
                raise OutputError(f"the result cannot be printed on stdout ({in_words(error.errno or 0)})") from error
        return size

    def _write_all(self, data: memoryview) -> None:
        while data:
            if written := super().write(data):
                data = data[written:]
                self._is_stuck = False
            elif not self._can_write_soon():
                return

    def _can_write_soon(self) -> bool:
        """Wait for the reader of a pipe that does not block: as long as it takes for a result."""
        if self._is_stuck and not self.is_result:
            return False
        poll = select.poll()
        poll.register(self.fileno(), select.POLLOUT)
        self._is_stuck = not poll.poll(None if self.is_result else PATIENCE_S * 1000)
        return not self._is_stuck
