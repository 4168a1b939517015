"""``--num-processes N``: the same command N times, as the processes of one distributed run on this machine.

Each gets the environment that ``torchrun`` would give it. torchrun itself ends in a traceback of its own and with exit
code 1 whenever a process exits with anything but 0, and ends processes 30 seconds after a Ctrl-C. Here exit code and
message are those of the process, a signal is passed on once, and there is time to save.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from .console import say_error

POLL_S = 0.1
GRACE_S = 5.0  # for the others to fail by themselves: the first process then says why, as all do
END_S = 15.0  # between asking a process to end and ending it
SHOWN_LINES = 5


def launch(command: Sequence[str], processes: int) -> int:
    """Run a command in several processes and wait for them.

    Args:
        command: The program and its arguments.
        processes: How many.

    Returns:
        The exit code of the first process, or of the one that failed alone; its last lines are printed then.
    """
    with TemporaryDirectory(prefix="oddsmith-") as folder:
        logs = [Path(folder) / f"process-{rank}.log" for rank in range(processes)]
        children = [_start(command, rank, environment, logs[rank]) for rank, environment in _environments(processes)]
        try:
            with _signals_passed_on(children):
                failed = _wait(children)
        finally:
            _end(children)
        code = children[0].returncode
        if failed is not None and failed != 0:
            say_error(f"process {failed} of {processes} failed; it said:")
            for line in logs[failed].read_text(encoding="utf-8", errors="replace").splitlines()[-SHOWN_LINES:]:
                print(f"  {line}", file=sys.stderr)
            code = children[failed].returncode
        return code if code >= 0 else 128 - code


def _environments(processes: int) -> Iterator[tuple[int, dict[str, str]]]:
    """Rank and environment of each process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    threads = max(1, (os.cpu_count() or 1) // processes)
    for rank in range(processes):
        yield (
            rank,
            {
                "OMP_NUM_THREADS": str(threads),
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(processes),
                "LOCAL_WORLD_SIZE": str(processes),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            },
        )


def _start(command: Sequence[str], rank: int, environment: dict[str, str], log: Path) -> subprocess.Popen:
    """Start one process. Only the first shares the terminal; its own process group keeps Ctrl-C from it."""
    if rank == 0:
        return subprocess.Popen(command, env=environment, process_group=0)
    with log.open("wb") as file:
        return subprocess.Popen(
            command, env=environment, process_group=0, stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )


def _wait(children: Sequence[subprocess.Popen]) -> int | None:
    """Wait until all have ended, or one has failed and the grace for the others is over.

    Args:
        children: The processes, by rank.

    Returns:
        The process to blame: 0 if the first failed by itself, else the first to fail; ``None`` if none failed.
    """
    while True:
        codes = [child.poll() for child in children]
        if all(code == 0 for code in codes):
            return None
        failed = next((rank for rank, code in enumerate(codes) if code), None)
        if failed is not None:
            deadline = time.monotonic() + GRACE_S
            while time.monotonic() < deadline and any(child.poll() is None for child in children):
                time.sleep(POLL_S)
            return 0 if children[0].poll() else failed
        time.sleep(POLL_S)


@contextmanager
def _signals_passed_on(children: Sequence[subprocess.Popen]) -> Iterator[None]:
    """Pass Ctrl-C and a request to end on to every process, once each."""

    def pass_on(number: int, _frame: object) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(children: Sequence[subprocess.Popen]) -> None:
    """End what still runs."""
    for child in children:
        if child.poll() is None:
            child.terminate()
    deadline = time.monotonic() + END_S
    for child in children:
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
