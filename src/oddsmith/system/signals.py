"""Receive SIGTERM, SIGUSR1, SIGINT and SIGHUP as requests to stop. The first is recorded, the second ends the process.

A signal handler in Python runs when the main thread returns to the interpreter, and a thread that waits for another
process of its run may never return. So a separate thread receives the signals, from a socket to which Python writes the
number of each signal as it arrives.
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

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)

# A batch system signals every process of a job, and a launcher among them forwards the signal: that is one request.
SAME_REQUEST_S = 1.0
# The time that the main thread has to end the process itself, and to restore the terminal.
AT_ONCE_S = 5.0
AGAIN_S = 0.05
PARENT_CHECK_S = 1.0

RESUMABLE, ENDED_AT_ONCE = 75, 130  # exit codes


class NothingTrained(SystemExit):
    """Ends a process that was asked to stop before its first step, with the exit code of a run that can be resumed."""

    def __init__(self, signal_name: str):
        super().__init__(RESUMABLE)
        self.signal_name = signal_name

    def __str__(self) -> str:
        return f"stopped by {self.signal_name} before the first step, so nothing is lost; start again with --resume"


class StopSignals:
    """Receives requests to stop inside a ``with`` block of the main thread.

    Until :meth:`remember` is called there is nothing to save: a request raises ``NothingTrained`` in the main thread.
    From then on ``heard`` names the first signal. A second request raises ``KeyboardInterrupt`` in the main thread, and
    ends the process with exit code 130 if the block is not left within ``AT_ONCE_S``.

    SIGHUP stays ignored where it was ignored before, as under ``nohup``. A forked process has the handlers from before
    the block. In another thread than the main one (Ray Train trains in such a one), where Python lets nobody receive
    signals, the block receives none: whoever started the thread decides when it ends.
    """

    def __init__(self) -> None:
        self.heard: str | None = None  # the name of the first signal
        self._heard_at = 0.0
        self._at_once = False  # there was a second request
        self._raised: set[type[BaseException]] = set()  # in the main thread, each once
        self._report: Callable[[str], None] | None = None
        self._handlers: dict[int, Any] = {}
        self._wakeup_before = -1
        self._terminals: list[int] = []
        self._end: threading.Timer | None = None

    def __enter__(self) -> StopSignals:
        global _active
        self._receives = threading.current_thread() is threading.main_thread()
        if not self._receives:
            return self
        self._receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)
        self._terminals = [fd for fd in (1, 2) if os.isatty(fd)]
        self._wakeup_before = signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        for number in STOP_SIGNALS:
            if number.name != "SIGHUP" or signal.getsignal(number) != signal.SIG_IGN:
                self._handlers[number] = signal.signal(number, self._on_signal)
        self._thread = threading.Thread(target=self._listen, name="stop signals", daemon=True)
        self._thread.start()
        _active = self
        return self

    def __exit__(self, *exception: object) -> None:
        global _active
        if not self._receives:
            return
        _active = None
        self._restore()
        self._sender.send(b"\0")
        self._thread.join()
        if self._end is not None:
            self._end.cancel()
        self._receiver.close()
        self._sender.close()

    def remember(self, report: Callable[[str], None]) -> None:
        """Only record the first request from now on, because there is something to save.

        ``report`` is called with the name of its signal, in another thread.
        """
        self._report = report
        if self._end is not None and not self._at_once:  # a request came just now
            self._end.cancel()

    def _restore(self) -> None:
        """Restore the signal handlers from before the block."""
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal in the main thread, possibly late."""
        if self._at_once and KeyboardInterrupt not in self._raised:
            self._raised.add(KeyboardInterrupt)
            raise KeyboardInterrupt
        if self._report is None and not self._raised:
            self._raised.add(NothingTrained)
            raise NothingTrained(signal.Signals(number).name)

    def _listen(self) -> None:
        """Receive the signals as they arrive, in a separate thread."""
        number = 0
        while True:
            is_missed = self._at_once and KeyboardInterrupt not in self._raised
            is_missed |= self.heard is not None and self._report is None and not self._raised
            self._receiver.settimeout(AGAIN_S if is_missed else None)
            try:
                received = self._receiver.recv(1)[0]
            except TimeoutError:
                # A signal interrupts the main thread's sleep or wait, unless it came just before that began.
                signal.pthread_kill(threading.main_thread().ident or 0, number)
                continue
            if received == 0:
                return
            if received in self._handlers:
                number = received
                self._receive(number)

    def _receive(self, number: int) -> None:
        now = time.monotonic()
        if signal.Signals(number).name == "SIGHUP":
            self._release_closed_terminals()
        if self.heard is None:
            self.heard, self._heard_at = signal.Signals(number).name, now
            if self._report is None:
                self._end_soon(RESUMABLE)
            else:
                with suppress(OSError):  # stderr may be closed
                    self._report(self.heard)
        elif now - self._heard_at >= SAME_REQUEST_S and not self._at_once:
            self._at_once = True
            self._end_soon(ENDED_AT_ONCE)

    def _end_soon(self, exit_code: int) -> None:
        if self._end is not None:
            self._end.cancel()
        self._end = threading.Timer(AT_ONCE_S, os._exit, (exit_code,))
        self._end.daemon = True
        self._end.start()

    def _release_closed_terminals(self) -> None:
        """Redirect output from closed terminals to nowhere: an error of writing would end the run before it saves."""
        for fd in self._terminals:
            if not os.isatty(fd):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, fd)
                os.close(nowhere)


_active: StopSignals | None = None
_fork = threading.local()


def _block_signals() -> None:
    """Block signals during a fork, so that none is lost and each reaches the process it was sent to."""
    _fork.mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS) if _active is not None else None


def _after_fork_in_parent() -> None:
    if _fork.mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _fork.mask)


def _after_fork_in_child() -> None:
    """Restore the handlers in a forked process: SIGTERM to a worker would otherwise stop the run of its parent."""
    global _active
    if _active is not None:
        _active._restore()
        _active = None
    _after_fork_in_parent()


os.register_at_fork(before=_block_signals, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


def leave_stopping_to_parent(worker: int = 0) -> None:
    """Let a worker process be stopped by its parent only: ``worker_init_fn`` of data loaders, which ignores the number.

    A batch system or a launcher (torchrun) signals the workers as well. Without this they would end in the middle of
    the step that is to be finished, and the run with an error.
    """
    for number in STOP_SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":  # other systems do not name the sender of a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_sigterm_of_parent, daemon=True).start()


def _end_with_sigterm_of_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def end_with_parent(parent: int | None = None) -> None:
    """Send this process SIGTERM as soon as its parent has ended, for whatever reason.

    ``parent`` is the process id of the parent, which may have ended already; by default that of the current parent.
    """
    threading.Thread(target=_end_after, args=(os.getppid() if parent is None else parent,), daemon=True).start()


def _end_after(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_S)
    os.kill(os.getpid(), signal.SIGTERM)
