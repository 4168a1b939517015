"""Run each probe in a process of its own, and talk with it.

    search -> probe     the task, as the argument of its function; True or False (go on?) after each evaluation
    probe -> search     Steps(3, 50) | Evaluation(...) | the last message

One that runs out of memory is killed alone, and loses; what it held of a GPU is free again when it has ended; and
accelerate keeps one state for a process, which a second trainer would inherit. So that a probe of a minute does not
wait six seconds for its imports, they are forked from a process that has the libraries imported and has computed
nothing. Where there is a GPU they start anew: libraries may touch its driver as they are imported, and a fork of that
could not use it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

from ..system.outside import open_file, read_text

ENDS_WITHIN_S = 5.0  # a probe that is asked to; a step may take longer
LAST_CHARACTERS = 2_000  # of the log of a probe, in which the reason is looked for
GPU_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA's, AMD's, and that of WSL


class Steps(NamedTuple):
    """How far a probe is."""

    done: int
    of: int


class Ended(NamedTuple):
    """The end of a process of a probe that has sent no last message, in words."""

    how: str


Body = Callable[[Connection, dict[str, Any]], None]


def converse(
    body: Body, task: dict[str, Any], log: Path, answer: Callable[[Any], bool | None], preload: Sequence[str]
) -> Any:
    """Run the process of a probe, and return its last message.

    Args:
        body: What to run there, a function of a module.
        task: Its second argument; the first is its end of the connection.
        log: The file for what it prints.
        answer: Called with each message; returns what to send back, ``None`` for nothing.
        preload: Modules that it needs.

    Returns:
        The message, or ``Ended`` where the process has ended without one.
    """
    forks = sys.platform == "linux" and not any(map(os.path.exists, GPU_DRIVERS))
    context: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
    if forks:
        context.set_forkserver_preload(list(preload))
    ours, its = context.Pipe()
    process = context.Process(target=_in_process, args=(body, its, task, str(log)))
    last: Any = None
    process.start()
    its.close()
    try:
        while True:
            last = ours.recv()
            reply = answer(last)
            if reply is not None:
                ours.send(reply)
    except (EOFError, ConnectionError):  # it has ended
        process.join()
    finally:
        process.terminate()  # so that it can give back its semaphores, of which Python would warn
        process.join(ENDS_WITHIN_S)
        process.kill()
        process.join()
        ours.close()
    return Ended(_how_it_ended(process.exitcode or 0, log)) if process.exitcode else last


def _in_process(body: Body, connection: Connection, task: dict[str, Any], log: str) -> None:
    """Run a probe: what it prints goes to its log, Ctrl-C is left to the search, and it ends when the search does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    threading.Thread(target=_end_with_search, daemon=True).start()
    with open_file(log, "wb", follow=False) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    body(connection, task)


def _end_with_search() -> None:
    search = multiprocessing.parent_process()
    if search is not None:
        wait([search.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(ENDS_WITHIN_S)
        os._exit(1)


def _how_it_ended(code: int, log: Path) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        return f"ended by {name}" + (", as when memory runs out" if name == "SIGKILL" else "")
    try:
        said = read_text(log, errors="replace", follow=False)[-LAST_CHARACTERS:].strip().splitlines()
    except OSError:  # it ended before it had a log
        said = []
    return said[-1] if said else f"ended with exit code {code}"
