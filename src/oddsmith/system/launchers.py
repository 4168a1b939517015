"""Read what a launcher says, by environment variables, of the processes of a run. Needs no torch.

torchrun, accelerate launch and ``oddsmith train --num-processes`` set ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK`` and
``LOCAL_WORLD_SIZE``, which torch and accelerate read. mpirun and srun have names of their own, which accelerate reads
on CPUs alone: without a translation each of their processes would train by itself.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_MPI = {
    "OMPI_COMM_WORLD_RANK": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    "MV2_COMM_WORLD_RANK": ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
    "PMI_RANK": ("PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),  # MPICH, Intel MPI
}
_ADDRESS, _PORT = "127.0.0.1", 29500  # accelerate's port
_FIRST_JOB_PORT, _JOB_PORTS = 20_000, 20_000


def join_processes() -> int:
    """Translate what mpirun or srun says into torchrun's variables; return how many processes the run has.

    Returns:
        ``WORLD_SIZE``; 1 where no launcher has started this process.

    Raises:
        ConfigError: A variable is missing or not the number that it should be.
    """
    if not any(name in os.environ for name in NAMES[:2]):
        os.environ.update(_translated(os.environ))
    world = _number("WORLD_SIZE", 1)
    if world > 1 and "RANK" not in os.environ:
        raise ConfigError(
            f"the environment variable WORLD_SIZE is {world}, but RANK is missing: start all processes with a launcher"
            " (oddsmith train --num-processes N, torchrun, accelerate launch, mpirun, srun), or unset WORLD_SIZE"
        )
    if is_on("ACCELERATE_USE_CPU") and "RANK" not in os.environ and "MASTER_PORT" in os.environ:
        # It sets an address for its processes to meet at, and then starts one (accelerate 1.15, simple_launcher).
        raise ConfigError(
            "accelerate launch was asked for several processes, and on CPUs starts one alone without mpirun: start them"
            " with torchrun or oddsmith train --num-processes N, or ask it for one and unset MASTER_PORT"
        )
    rank = _number("RANK", 0)
    if rank >= world:
        found = f"WORLD_SIZE is {world}" if "WORLD_SIZE" in os.environ else "WORLD_SIZE is missing"
        raise ConfigError(
            f"the environment variable RANK is {rank}, and {found}: a launcher sets both; unset both for one process"
        )
    return world


def local_processes(world: int) -> int:
    """Return how many of the ``world`` processes of a run are on this machine."""
    return _number("LOCAL_WORLD_SIZE", world)


def may_restart() -> bool:
    """Return whether torchrun has restarted the processes of this run, or would (``--max-restarts``)."""
    return _number("TORCHELASTIC_MAX_RESTARTS", 0) > 0 or restarts() > 0


def restarts() -> int:
    """Return how often torchrun has restarted the processes of this run."""
    return _number("TORCHELASTIC_RESTART_COUNT", 0)


def is_on(variable: str) -> bool:
    """Return whether a variable of ``accelerate launch`` is on, in any of the words that accelerate takes for it."""
    return os.environ.get(variable, "").lower() in ("1", "true", "yes", "on", "y", "t")


def store_of_run() -> Any:
    """Return a connection of its own to the store at which the processes of a run have met (``TCPStore``)."""
    from torch import distributed

    return distributed.distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]


def _number(name: str, default: int) -> int:
    text = os.environ.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal()):
        raise ConfigError(
            f"the environment variable {name} is {text!r}; expected a whole number, as a launcher sets it"
        )
    return int(text)


def _translated(given: Mapping[str, str]) -> dict[str, str]:
    """Return torchrun's variables; nothing where neither mpirun nor srun has started several processes."""
    found = _of_mpi(given)
    if "LOCAL_RANK" not in found:
        found = _of_slurm(given) or found
    if found.get("WORLD_SIZE", "1") == "1":
        return {}
    if "MASTER_ADDR" not in given:
        if found.get("LOCAL_WORLD_SIZE") != found["WORLD_SIZE"]:
            raise ConfigError(
                f"a launcher has started {found['WORLD_SIZE']} processes, on several machines, but the environment"
                " variable MASTER_ADDR is missing; set it to the name of the first machine, for all of them"
            )
        found["MASTER_ADDR"] = _ADDRESS
    job = given.get("SLURM_JOB_ID", "")
    port = _FIRST_JOB_PORT + int(job) % _JOB_PORTS if job.isdecimal() else _PORT
    return {"MASTER_PORT": str(port), **{name: given[name] for name in ("MASTER_PORT",) if name in given}, **found}


def _of_mpi(given: Mapping[str, str]) -> dict[str, str]:
    for rank, others in _MPI.items():
        if rank in given and others[0] in given:
            return {ours: given[theirs] for ours, theirs in zip(NAMES, (rank, *others), strict=True) if theirs in given}
    return {}


def _of_slurm(given: Mapping[str, str]) -> dict[str, str]:
    """Return what srun says of its tasks; nothing in a batch script, which Slurm counts as task 0, nor in a shell.

    ``srun --pty`` gives a shell to the first of several tasks, and to the others nothing; what that shell starts is one
    process. A srun within it hands the variable on, but no terminal.
    """
    if "SLURM_PTY_PORT" in given and sys.stdin is not None and sys.stdin.isatty():
        return {}
    world = given.get("SLURM_STEP_NUM_TASKS")
    if world is None and given.get("ENVIRONMENT") != "BATCH":
        world = given.get("SLURM_NTASKS")
    rank, local_rank = given.get("SLURM_PROCID"), given.get("SLURM_LOCALID")
    if world is None or rank is None or local_rank is None or not world.isdecimal():
        return {}
    nodes = given.get("SLURM_STEP_NUM_NODES", given.get("SLURM_NNODES", "1"))
    on_each = -(-int(world) // max(1, int(nodes) if nodes.isdecimal() else 1))
    return dict(zip(NAMES, (rank, world, local_rank, str(on_each)), strict=True))
