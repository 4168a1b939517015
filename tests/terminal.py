"""A command in a pseudo-terminal: what a person sees, and typing."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from types import TracebackType

from .command import START, environment

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|\x1b\][^\x07]*\x07")


class Terminal:
    """A process of the command with a terminal of its own. A context manager.

    Args:
        *words: Of the command line.
        columns, rows: Size of the terminal.
    """

    def __init__(self, *words: object, columns: int = 200, rows: int = 30):
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        # COLUMNS would beat the terminal's own size.
        settings = {key: value for key, value in environment().items() if key not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            [*START, *map(str, words)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=settings | {"TERM": "xterm-256color"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C reaches it
        )
        os.close(slave)
        self.raw = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        os.close(self.master)

    @property
    def text(self) -> str:
        """Everything that was shown, without colours and movements of the cursor."""
        return ESCAPES.sub("", self.raw).replace("\r", "")

    def wait_for(self, pattern: str, since: int = 0, seconds: float = 60) -> int:
        """Read until something is shown.

        Args:
            pattern: Regular expression.
            since: Where in ``text`` it may begin.
            seconds: How long to wait.

        Returns:
            Where in ``text`` it ends.
        """
        deadline = time.monotonic() + seconds
        while (found := re.compile(pattern, re.DOTALL).search(self.text, since)) is None:
            assert time.monotonic() < deadline, f"{pattern!r} did not appear in: {self.text!r}"
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    self.raw += os.read(self.master, 65536).decode(errors="replace")
                except OSError:  # the process has ended
                    assert re.search(pattern, self.text[since:], re.DOTALL), (
                        f"it ended without {pattern!r}: {self.text!r}"
                    )
        return found.end()

    def type(self, keys: str) -> int:
        """Type something; returns the length of ``text`` before it."""
        before = len(self.text)
        os.write(self.master, keys.encode())
        return before

    def end(self, seconds: float = 20) -> int:
        """The exit code."""
        return self.process.wait(seconds)
