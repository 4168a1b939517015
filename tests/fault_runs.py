"""The command as a process that something is done to while it runs: stopped at a checkpoint, and let go again."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from oddsmith.cli.main import main
from tests.command import Outcome
from tests.kills import committed

POLL_S = 0.001
ENDS_WITHIN_S = 120.0
DAY_S = 86_400.0


@dataclass(frozen=True)
class Machine:
    """What a run may have of the machine.

    Args:
        limits: Of ``resource``, as ``{RLIMIT_FSIZE: 10_000}``.
        spare_memory: Bytes of memory that it may take beside those it begins with.
        clock_jumps: Whether its clock goes back by a day every time it is read.
    """

    limits: dict[int, int] = field(default_factory=dict)
    spare_memory: int | None = None
    clock_jumps: bool = False


class Run:
    """``oddsmith`` in processes of its own, forked from one that has torch and Oddsmith imported.

    Args:
        *words: The words of the command.
        log: Gets what the first process says; the others write beside it.
        machine: What it may have of the machine.
        processes: How many train together.
    """

    def __init__(self, *words: object, log: Path, machine: Machine | None = None, processes: int = 1):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.killed_runs", "tests.fault_runs", "oddsmith.cli.setup.assembly"])
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._logs = [log.with_name(f"{log.name}-{rank}") for rank in range(processes)]
        self._all = [
            context.Process(
                target=_command,
                args=(list(map(str, words)), self._logs[rank], machine or Machine(), _place(rank, processes, port)),
            )
            for rank in range(processes)
        ]
        for process in self._all:
            process.start()

    @contextmanager
    def held_at(self, folder: Path, step: int) -> Iterator[int]:
        """Hold the processes when the checkpoint of a step is committed, and let them go on.

        Yields:
            The process id of the first.
        """
        deadline = time.monotonic() + ENDS_WITHIN_S
        while committed(folder) < step:
            if not self._all[0].is_alive() or time.monotonic() > deadline:
                raise RuntimeError(f"the run did not come to step {step}:\n{self._said()}")
            time.sleep(POLL_S)
        pids = [process.pid or 0 for process in self._all]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield pids[0]
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    def end(self) -> Outcome:
        """Wait for the end of all processes.

        Returns:
            Exit code and what the first said, as ``err``.
        """
        deadline = time.monotonic() + ENDS_WITHIN_S
        for process in self._all:
            process.join(max(0.0, deadline - time.monotonic()))
        running = [process for process in self._all if process.is_alive()]
        for process in running:
            process.kill()
            process.join()
        if running:
            raise RuntimeError(f"{len(running)} processes did not end:\n{self._said()}")
        return Outcome(self._all[0].exitcode or 0, "", self._said())

    def _said(self) -> str:
        return self._logs[0].read_text(encoding="utf-8", errors="replace")


def _place(rank: int, processes: int, port: int) -> dict[str, str]:
    """What tells a process its place among those that train together, in its environment."""
    if processes == 1:
        return {}
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    return {name: str(number) for name, number in place.items()} | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _command(words: list[str], log: Path, machine: Machine, place: dict[str, str]) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(place, COLUMNS="400")
    torch.set_num_threads(1)
    for kind, size in machine.limits.items():
        resource.setrlimit(kind, (size, size))
    if machine.spare_memory is not None:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        most = pages * resource.getpagesize() + machine.spare_memory
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    if machine.clock_jumps:
        time.time = _jumping(time.time)
    main(words)


def _jumping(clock: Callable[[], float]) -> Callable[[], float]:
    readings = 0

    def read() -> float:
        nonlocal readings
        readings += 1
        return clock() - readings * DAY_S

    return read


def reverse_times(folder: Path) -> None:
    """Give the checkpoints of a run modification times that say the opposite of their order, as a copy may have."""
    for place in folder.glob("checkpoint-*"):
        step = int(place.name.rpartition("-")[2])
        for inner in (place, *place.rglob("*")):
            os.utime(inner, (DAY_S * (1000 - step),) * 2)
