"""The command as a process that something is done to while it runs: stopped at a checkpoint, and let go again."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from oddsmith.cli.main import main
from tests.command import Outcome
from tests.kills import committed

POLL_S = 0.001
ENDS_WITHIN_S = 120.0
DAY_S = 86_400.0


class Run:
    """``oddsmith`` in a process of its own, forked from one that has torch and Oddsmith imported.

    Args:
        *words: The words of the command.
        log: Gets what it says.
        limits: Of ``resource``: what it may have, as ``{RLIMIT_FSIZE: 10_000}``.
        spare_memory: Bytes of memory that it may take beside those it begins with.
        clock_jumps: Whether its clock goes back by a day every time it is read.
    """

    def __init__(
        self,
        *words: object,
        log: Path,
        limits: dict[int, int] | None = None,
        spare_memory: int | None = None,
        clock_jumps: bool = False,
    ):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.killed_runs", "tests.fault_runs", "oddsmith.cli.assembly"])
        self._log = log
        how = (limits or {}, spare_memory, clock_jumps)
        self._process = context.Process(target=_command, args=(list(map(str, words)), log, *how))
        self._process.start()

    @contextmanager
    def held_at(self, folder: Path, step: int) -> Iterator[int]:
        """Hold the process when the checkpoint of a step is committed; yields its process id, and lets it go on."""
        deadline = time.monotonic() + ENDS_WITHIN_S
        while committed(folder) < step:
            if not self._process.is_alive() or time.monotonic() > deadline:
                raise RuntimeError(f"the run did not come to step {step}:\n{self._said()}")
            time.sleep(POLL_S)
        pid = self._process.pid or 0
        os.kill(pid, signal.SIGSTOP)
        try:
            yield pid
        finally:
            os.kill(pid, signal.SIGCONT)

    def end(self) -> Outcome:
        """Wait for its end.

        Returns:
            Exit code and what it said, as ``err``.
        """
        self._process.join(ENDS_WITHIN_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
            raise RuntimeError(f"the run did not end:\n{self._said()}")
        return Outcome(self._process.exitcode or 0, "", self._said())

    def _said(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")


def _command(words: list[str], log: Path, limits: dict[int, int], spare_memory: int | None, clock_jumps: bool) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ["COLUMNS"] = "400"
    torch.set_num_threads(1)
    for kind, size in limits.items():
        resource.setrlimit(kind, (size, size))
    if spare_memory is not None:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        most = pages * resource.getpagesize() + spare_memory
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    if clock_jumps:
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
