"""Processes forked from one that has torch, transformers and Oddsmith imported, which takes 6 s in each new process.

Use them wherever a test needs a process of its own, but not what happens while the libraries are imported.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path

# All that commands and trainings import. The first process that is asked for starts the fork server.
PRELOADED = [
    "tests.killed_runs",
    "oddsmith.cli.commands.train.assembly",
    "oddsmith.cli.commands.export",
    "oddsmith.cli.commands.chat",
    "deepspeed",  # if it is installed: accelerate imports it where a model is unwrapped
]


def fork_server() -> ForkServerContext:
    """Return the multiprocessing context of this test process's fork server."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def fork_all(
    target: Callable[[], object],
    environments: Sequence[Mapping[str, str]],
    log: Path,
    timeout_s: float,
    cwd: Path | None = None,
) -> list[int]:
    """Run a picklable function in one process for each environment; return their exit codes.

    What they write goes to ``LOG-0.out``, ``LOG-0.err``, and so on. The first that fails ends the others.
    """
    context = fork_server()
    logs = [log.with_name(f"{log.name}-{number}") for number in range(len(environments))]
    processes = [
        context.Process(target=_call, args=(target, dict(variables), place, cwd or Path.cwd()))
        for variables, place in zip(environments, logs, strict=True)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout_s)
        if process.exitcode != 0:
            for other in processes:
                other.kill()
    for process in processes:
        process.join()
    return [process.exitcode or 0 for process in processes]


def run_module(name: str, *words: str) -> None:
    """Run a module as ``python -m`` does."""
    sys.argv = [name, *words]
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def _call(target: Callable[[], object], variables: dict[str, str], log: Path, cwd: Path) -> None:
    redirect_output(log.with_name(f"{log.name}.out"), log.with_name(f"{log.name}.err"))
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(cwd)
    target()


def redirect_output(out: Path, err: Path | None = None, flags: int = os.O_TRUNC) -> None:
    """Send stdout and stderr of this process to files, or both to one."""
    os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT | flags, 0o600), 1)
    os.dup2(1 if err is None else os.open(err, os.O_WRONLY | os.O_CREAT | flags, 0o600), 2)


def free_port() -> int:
    """Return a port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def rank_environment(rank: int, processes: int, port: int) -> dict[str, str]:
    """Return the environment that tells a process its rank; empty for one process."""
    if processes == 1:
        return {}
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    return {name: str(n) for name, n in {**numbers, "MASTER_PORT": port}.items()} | {"MASTER_ADDR": "127.0.0.1"}
