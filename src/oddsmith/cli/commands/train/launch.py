"""``--num-processes N``: run the same command N times, as the processes of one distributed run on this machine.

Each gets the environment that ``torchrun`` would give it. torchrun itself prints its own traceback and returns exit
code 1 whenever a process exits with anything but 0, and ends processes 30 seconds after a signal. Here exit code and
message are those of the process, a signal is passed on once, and there is time to save. When one process dies the
others are ended within ``GRACE_S + END_S``; when the launcher dies they stop as on SIGTERM, with a checkpoint.

The processes meet at a store that the first one serves. torch's own listens on every address of the machine, and who
reaches it can end the run or change what the processes agree on: ours, and the connections between the processes, are
on the loopback interface alone.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from ....system.signals import RESUMABLE, STOP_SIGNALS, NothingTrained, end_with_parent
from ...terminal.console import say, say_error

POLL_S = 0.1
GRACE_S = 5.0  # for the other processes to fail by themselves, so that rank 0 can print the error
END_S = 15.0  # between SIGTERM and SIGKILL
SHOWN_LINES = 5
# In the environment of the processes: the process id of the launcher; the socket that the first one serves the store on
LAUNCHER, STORE_SOCKET = "ODDSMITH_LAUNCHER", "ODDSMITH_STORE_SOCKET"
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")  # of the connections between the processes
OUT_OF_MEMORY = (
    ", as the kernel does when memory runs out (see dmesg); lower per_device_train_batch_size or max_length, or start"
    " fewer processes"
)


def launch(command: Sequence[str], processes: int) -> int:
    """Run a command in several processes, wait for them, and say what went wrong.

    Returns the exit code of the first process, or of the one that was killed or failed alone.
    """
    with TemporaryDirectory(prefix="oddsmith-") as folder:
        logs = [Path(folder) / f"process-{rank}.log" for rank in range(processes)]
        with socket.create_server(("127.0.0.1", 0)) as listening:
            environments = _environments(processes, listening)
            children = [_start(command, rank, environments[rank], logs[rank], listening) for rank in range(processes)]
        try:
            with _signals_passed_on(children) as passed_on:
                blamed = _wait(children)
        finally:
            _end(children)
        if blamed is None:
            return 0
        code = children[blamed].returncode
        if -code in passed_on:  # the signal came before the process could handle it
            say_error(str(NothingTrained(signal.Signals(-code).name)), "interrupted", "bold yellow")
            return RESUMABLE
        if code < 0:
            name = signal.Signals(-code).name
            why = OUT_OF_MEMORY if name == "SIGKILL" else ""
            say_error(f"process {blamed} of {processes} was ended by {name}{why}")
            return 128 - code
        if blamed != 0:
            say_error(f"process {blamed} of {processes} failed; it said:")
            for line in logs[blamed].read_text(encoding="utf-8", errors="replace").splitlines()[-SHOWN_LINES:]:
                say(f"  {line}")
        return code


def join_launcher() -> None:
    """In a process that :func:`launch` started: stop as on SIGTERM when it has ended, and serve the store if first."""
    launcher = os.environ.pop(LAUNCHER, None)
    if launcher is not None:
        end_with_parent(int(launcher))
    listening = os.environ.pop(STORE_SOCKET, None)
    if listening is not None:
        _serve_store(int(listening))


@cache  # keeps the store
def _serve_store(listening: int) -> object:
    from torch.distributed import TCPStore

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(address, port, is_master=True, wait_for_workers=False, master_listen_fd=listening)


def _environments(processes: int, listening: socket.socket) -> list[dict[str, str]]:
    """Return the environment of each process, as ``torchrun`` would make it, for a store on a listening socket."""
    loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
    shared = {
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes)),
        **({} if loopback is None else dict.fromkeys(INTERFACES, loopback)),
        **os.environ,
        **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(processes)),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(listening.getsockname()[1]),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # every process is a client of the store
        LAUNCHER: str(os.getpid()),
    }
    ranks = [shared | dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)) for rank in range(processes)]
    return [ranks[0] | {STORE_SOCKET: str(listening.fileno())}, *ranks[1:]]


def _start(
    command: Sequence[str], rank: int, environment: dict[str, str], log: Path, listening: socket.socket
) -> subprocess.Popen:
    """Start one process in a process group of its own, where Ctrl-C does not reach it.

    Only rank 0 has the terminal, and the socket of the store.
    """
    if rank == 0:
        return subprocess.Popen(command, env=environment, process_group=0, pass_fds=[listening.fileno()])
    with log.open("wb") as file:
        return subprocess.Popen(
            command, env=environment, process_group=0, stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )


def _wait(children: Sequence[subprocess.Popen]) -> int | None:
    """Wait until all have ended, or ``GRACE_S`` after one has failed; return the rank of the process to blame.

    A killed process is to blame, because the others fail in consequence; else rank 0 if it failed; else the first
    that failed. The result is ``None`` if none failed.
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
            killed = [rank for rank, child in enumerate(children) if (child.poll() or 0) < 0]
            if killed:
                return min(killed, key=lambda rank: children[rank].returncode != -signal.SIGKILL)
            return 0 if children[0].poll() else failed
        time.sleep(POLL_S)


@contextmanager
def _signals_passed_on(children: Sequence[subprocess.Popen]) -> Iterator[list[int]]:
    """Pass each signal to stop on to every process; yield the list of those passed on so far."""
    passed_on: list[int] = []

    def pass_on(number: int, _frame: object) -> None:
        passed_on.append(number)
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    numbers = [number for number in STOP_SIGNALS if number != signal.SIGHUP or not nohup]
    before = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        yield passed_on
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(children: Sequence[subprocess.Popen]) -> None:
    """End the processes that still run."""
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
