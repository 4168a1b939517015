"""Run the command in a pseudo-terminal, read what it shows, and type."""

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

from .command import START, environment

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|\x1b\][^\x07]*\x07")


class Terminal:
    """A process of the command with a terminal. A context manager."""

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

    def __exit__(self, *raised: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        os.close(self.master)

    @property
    def text(self) -> str:
        """The output so far, without colours and cursor movements."""
        return ESCAPES.sub("", self.raw).replace("\r", "")

    def wait_for(self, pattern: str, since: int = 0, seconds: float = 60) -> int:
        """Read until ``text`` matches a pattern from the position ``since`` on; return the end of the match."""
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
        """Type something and return the length of ``text`` before it."""
        before = len(self.text)
        os.write(self.master, keys.encode())
        return before

    def end(self, seconds: float = 20) -> int:
        """Wait for the end of the process and return its exit code."""
        return self.process.wait(seconds)
