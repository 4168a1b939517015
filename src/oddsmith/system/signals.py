"""Requests to stop: SIGTERM, SIGUSR1, SIGINT and SIGHUP. The first is remembered, the second ends the process at once.

A handler written in Python runs when the main thread comes back to the interpreter, and a thread that waits for another
process of its run may never come back. So a thread of its own hears the signals, through the socket into which Python
writes the number of each as it arrives.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

# Windows has only two of them.
NAMES = ("SIGTERM", "SIGUSR1", "SIGINT", "SIGHUP")
STOP_SIGNALS = tuple(signal.Signals[name] for name in NAMES if hasattr(signal, name))

# A batch system signals every process of a job, and a launcher among them passes the signal on: that is one request.
SAME_REQUEST_S = 1.0
# For a main thread that is to end at once to do so by itself, and to leave the terminal in order.
AT_ONCE_S = 5.0
AGAIN_S = 0.05

RESUMABLE, ENDED_AT_ONCE = 75, 130  # exit codes


class NothingTrained(SystemExit):
    """Ends a process that was asked to stop before its first step, with the exit code of a run that can go on."""

    def __init__(self, signal_name: str):
        super().__init__(RESUMABLE)
        self.signal_name = signal_name

    def __str__(self) -> str:
        return f"stopped by {self.signal_name} before the first step, so nothing is lost; start again with --resume"


class StopSignals:
    """Hears requests to stop while it is entered, which only the main thread can do.

    Until :meth:`remember` is called there is nothing to save: a request raises ``NothingTrained`` in the main thread.
    From then on ``heard`` tells of it. A second one raises ``KeyboardInterrupt`` there, and where the main thread does
    not leave the block within ``AT_ONCE_S``, ends the process with exit code 130.

    SIGHUP is not listened to where it was ignored before, as under ``nohup``. A forked process hears what it did before
    the block was entered.
    """

    def __init__(self) -> None:
        self.heard: str | None = None  # the name of the first signal
        self._heard_at = 0.0
        self._at_once = False  # there was a second
        self._raised: set[type[BaseException]] = set()  # in the main thread, each once
        self._tell: Callable[[str], None] | None = None
        self._before: dict[int, Any] = {}
        self._wakeup_before = -1
        self._terminals: list[int] = []
        self._end: threading.Timer | None = None

    def __enter__(self) -> StopSignals:
        global _listening
        self._ear, self._mouth = socket.socketpair()
        self._mouth.setblocking(False)
        self._terminals = [fd for fd in (1, 2) if os.isatty(fd)]
        self._wakeup_before = signal.set_wakeup_fd(self._mouth.fileno(), warn_on_full_buffer=False)
        for number in STOP_SIGNALS:
            if number.name != "SIGHUP" or signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._hear)
        self._thread = threading.Thread(target=self._listen, name="stop signals", daemon=True)
        self._thread.start()
        _listening = self
        return self

    def __exit__(self, *exception: object) -> None:
        global _listening
        _listening = None
        self._leave()
        self._mouth.send(b"\0")
        self._thread.join()
        if self._end is not None:
            self._end.cancel()
        self._ear.close()
        self._mouth.close()

    def remember(self, tell: Callable[[str], None]) -> None:
        """From now on there is something to save, so that the first request is only remembered.

        Args:
            tell: Called with the name of its signal, in another thread.
        """
        self._tell = tell
        if self._end is not None and not self._at_once:  # a request came this very moment
            self._end.cancel()

    def _leave(self) -> None:
        """Hear what was heard before."""
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        """In the main thread, and possibly late."""
        if self._at_once and KeyboardInterrupt not in self._raised:
            self._raised.add(KeyboardInterrupt)
            raise KeyboardInterrupt
        if self._tell is None and not self._raised:
            self._raised.add(NothingTrained)
            raise NothingTrained(signal.Signals(number).name)

    def _listen(self) -> None:
        """In a thread of its own, as the signals arrive."""
        number = 0
        while True:
            is_missed = self._at_once and KeyboardInterrupt not in self._raised
            is_missed |= self.heard is not None and self._tell is None and not self._raised
            self._ear.settimeout(AGAIN_S if is_missed else None)
            try:
                heard = self._ear.recv(1)[0]
            except TimeoutError:
                # What the main thread sleeps or waits in ends with a signal, but not with one that came just before.
                signal.pthread_kill(threading.main_thread().ident or 0, number)
                continue
            if heard == 0:
                return
            if heard in self._before:
                number = heard
                self._take(number)

    def _take(self, number: int) -> None:
        now = time.monotonic()
        if signal.Signals(number).name == "SIGHUP":
            self._let_go_of_lost_terminals()
        if self.heard is None:
            self.heard, self._heard_at = signal.Signals(number).name, now
            if self._tell is None:
                self._end_after(AT_ONCE_S, RESUMABLE)
            else:
                with suppress(OSError):  # nobody may be there to read it
                    self._tell(self.heard)
        elif now - self._heard_at >= SAME_REQUEST_S and not self._at_once:
            self._at_once = True
            self._end_after(AT_ONCE_S, ENDED_AT_ONCE)

    def _end_after(self, seconds: float, exit_code: int) -> None:
        if self._end is not None:
            self._end.cancel()
        self._end = threading.Timer(seconds, os._exit, (exit_code,))
        self._end.daemon = True
        self._end.start()

    def _let_go_of_lost_terminals(self) -> None:
        """A closed terminal makes every line that is written to it an error, and there is still something to save."""
        for fd in self._terminals:
            if not os.isatty(fd):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, fd)
                os.close(nowhere)


_listening: StopSignals | None = None
_fork = threading.local()


def _hold_signals() -> None:
    """A signal that comes while a process is forked is for whoever it is sent to, and not lost in between."""
    _fork.mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS) if _listening is not None else None


def _go_on_in_parent() -> None:
    if _fork.mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _fork.mask)


def _go_on_in_child() -> None:
    """Else the end of a worker, which is asked to end by SIGTERM, would be heard in its parent as a request to stop."""
    global _listening
    if _listening is not None:
        _listening._leave()
        _listening = None
    _go_on_in_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_hold_signals, after_in_parent=_go_on_in_parent, after_in_child=_go_on_in_child)


def leave_stopping_to_parent(worker: int = 0) -> None:
    """Make a process that works for another one end only when that one says so: ``worker_init_fn`` of data loaders.

    A batch system or a launcher (torchrun) signals the workers as well. Without this they would end in the middle of
    the step that is to be finished, and the run with an error.

    Args:
        worker: Number of the worker, which makes no difference.
    """
    for number in STOP_SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":  # elsewhere the sender of a signal cannot be known
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_parent_says, daemon=True).start()


def _end_when_parent_says() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
