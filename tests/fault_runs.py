"""Run the command in processes that can be held at a checkpoint, under limits of the machine."""

import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from oddsmith.cli.main import main
from tests.command import SETTINGS, Outcome, save_config, save_model, save_pairs
from tests.forked import fork_server, free_port, rank_environment, redirect_output
from tests.kills import committed

POLL_S = 0.001
ENDS_WITHIN_S = 120.0
DAY_S = 86_400.0


def save_config_with_dropout(folder: Path, **settings) -> Path:
    """Write a configuration, with its model and pairs, of a run with dropout that saves every two steps."""
    model = save_model(folder / "model", attention_dropout=0.1)
    settings = {
        "model_name_or_path": str(model),
        "dataset_name": str(save_pairs(folder / "pairs.jsonl", 24)),
        **settings,
    }
    settings |= {"test_split_size": 0.25, "gradient_accumulation_steps": 2, "disable_dropout": False}
    settings |= {"save_steps": 2, "logging_steps": 3, "eval_strategy": "steps", "eval_steps": 3}
    return save_config(folder / "config.yaml", **SETTINGS, **settings)


@dataclass(frozen=True)
class Machine:
    """The limits of the machine for a run."""

    limits: dict[int, int] = field(default_factory=dict)  # of ``resource``, as ``{RLIMIT_FSIZE: 10_000}``
    spare_memory: int | None = None  # bytes beside those that the process has at its start
    clock_jumps: bool = False  # whether the clock goes back by a day every time it is read


class Run:
    """``oddsmith`` in processes forked from one with torch and Oddsmith imported; ``log`` gets their output."""

    def __init__(self, *words: object, log: Path, machine: Machine | None = None, processes: int = 1):
        context = fork_server()
        port = free_port()
        self._logs = [log.with_name(f"{log.name}-{rank}") for rank in range(processes)]
        self._all = [
            context.Process(target=_command, args=(list(map(str, words)), log, machine or Machine(), environment))
            for rank, log in enumerate(self._logs)
            for environment in [rank_environment(rank, processes, port)]
        ]
        for process in self._all:
            process.start()

    @contextmanager
    def held_at(self, folder: Path, step: int) -> Iterator[int]:
        """Hold the processes while the block runs, once a step is saved; yield the process id of the first."""
        deadline = time.monotonic() + ENDS_WITHIN_S
        while committed(folder) < step:
            if not self._all[0].is_alive() or time.monotonic() > deadline:
                raise RuntimeError(f"the run did not come to step {step}:\n{self._output()}")
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
        """Wait for the end of all processes, and return exit code and output (``err``) of the first."""
        deadline = time.monotonic() + ENDS_WITHIN_S
        for process in self._all:
            process.join(max(0.0, deadline - time.monotonic()))
        running = [process for process in self._all if process.is_alive()]
        for process in running:
            process.kill()
            process.join()
        if running:
            raise RuntimeError(f"{len(running)} processes did not end:\n{self._output()}")
        return Outcome(self._all[0].exitcode or 0, "", self._output())

    def _output(self) -> str:
        return self._logs[0].read_text(encoding="utf-8", errors="replace")


def _command(words: list[str], log: Path, machine: Machine, environment: dict[str, str]) -> None:
    redirect_output(log)
    os.environ.update(environment, COLUMNS="400")
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
    """Reverse the order of the modification times of a run's checkpoints, as a copy may have them."""
    for place in folder.glob("checkpoint-*"):
        step = int(place.name.rpartition("-")[2])
        for inner in (place, *place.rglob("*")):
            os.utime(inner, (DAY_S * (1000 - step),) * 2)
