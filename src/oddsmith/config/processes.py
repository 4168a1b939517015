"""Require that the processes of a run train together, and share out the weights, as settings and environment ask.

accelerate decides on both when transformers makes its state: without a device that it knows, every process becomes a
run of its own, and on a CPU it shards nothing, whatever is asked for. It says neither.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import distributed

from ..errors import ConfigError
from ..system.launchers import is_on, may_restart

STORE_S, POLL_S = 300.0, 0.2  # how long the first process may take to open its store
# What accelerate launch asks for.
_OF_LAUNCH = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
_UNSHARDED = (DistributedType.NO, DistributedType.MULTI_CPU)


def choose_cpu(args: Any, launched: int) -> None:
    """Turn ``use_cpu`` on where accelerate launch says so, before transformers makes accelerate's state.

    Also where several processes (``launched``) ask for DeepSpeed and there is no accelerator: DeepSpeed would compile a
    helper for CPUs before ``require_sharding`` refuses it.
    """
    if is_on("ACCELERATE_USE_CPU"):
        args.use_cpu = True
    elif "ACCELERATE_USE_CPU" not in os.environ and launched > 1 and (args.deepspeed or is_on(_OF_LAUNCH[1])):
        args.use_cpu = args.use_cpu or not torch.accelerator.is_available()


def let_one_speak(args: Any) -> None:
    """Keep back what other processes than the first one warn of: it is the same."""
    if args.process_index > 0:
        logging.getLogger(__name__.partition(".")[0]).setLevel(logging.ERROR)


def leave_agent_store() -> None:
    """Let processes that torchrun may restart meet at a store of their own, which the first of them serves.

    torch has them meet at that of torchrun, where after a restart they find the addresses of the dead ones, and hang or
    fail (https://github.com/pytorch/pytorch/issues/135712). ``MASTER_PORT`` becomes that of the new store. Nothing is
    done where a process group is there already.

    Raises:
        ConfigError: The first process did not open its store.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or not may_restart() or distributed.is_initialized():
        return
    host, key = os.environ["MASTER_ADDR"], "oddsmith/port"
    agent = distributed.TCPStore(host, int(os.environ["MASTER_PORT"]), is_master=False)
    if os.environ["RANK"] == "0":
        with socket.socket() as free:
            free.bind(("", 0))
            os.environ["MASTER_PORT"] = str(free.getsockname()[1])
        agent.set(key, os.environ["MASTER_PORT"])
    else:
        deadline = time.monotonic() + STORE_S
        while not _is_open(host, port := int(agent.get(key))):  # that of a process that is dead, or does not serve yet
            if time.monotonic() > deadline:
                raise ConfigError(f"process 0 on {host} has not opened its store within {STORE_S:.0f} s of the restart")
            time.sleep(POLL_S)
        os.environ["MASTER_PORT"] = str(port)
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"


def _is_open(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=POLL_S * 10).close()
    except OSError:
        return False
    return True


def require_one_run(args: Any, launched: int) -> None:
    """Require that accelerate sees all processes of the run; let it see them where there is no accelerator.

    Args:
        args: The settings, once transformers has made accelerate's state of them.
        launched: How many processes the launcher's variables name.

    Raises:
        ConfigError: This process would train alone, or as another one than it was started as.
    """
    if launched > 1 and args.world_size == 1 and not args.use_cpu and not torch.accelerator.is_available():
        args.use_cpu = True
        args.dataloader_pin_memory = False  # as transformers does with use_cpu
        vars(args).pop("_setup_devices", None)  # what transformers has made of the devices, and keeps
        _ = args.device
    rank = int(os.environ.get("RANK", 0))
    if distributed.is_available() and distributed.is_initialized():
        launched, rank = distributed.get_world_size(), distributed.get_rank()
    if launched == 1 or (args.world_size, args.process_index) == (launched, rank):
        return
    missing = [name for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK") if name not in os.environ]
    fix = (
        f"set {' and '.join(missing)} for each process, as torchrun does" if missing else "start all with one launcher"
    )
    raise ConfigError(
        f"this is process {rank} of {launched} by its launcher, and would train as process {args.process_index} of"
        f" {args.world_size}: {fix}"
    )


def lines_about_precision(args: Any) -> list[str]:
    """Take the precision of the settings, and return a line where accelerate launch was asked for another.

    transformers would take that of the launcher where both ``bf16`` and ``fp16`` are off, also one that the device
    cannot compute.
    """
    chosen = "bf16" if args.bf16 else "fp16" if args.fp16 else "no"
    wished = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    args.mixed_precision = chosen
    if wished in ("no", chosen):
        return []
    return [
        f"ACCELERATE_MIXED_PRECISION is {wished}; it has no effect: bf16 and fp16 of the settings count, and this run"
        f" computes in {'float32' if chosen == 'no' else chosen}"
    ]


def require_sharding(args: Any, *, is_launched_later: bool = False) -> None:
    """Refuse settings, or variables of accelerate launch, that ask for what nothing here can do.

    Args:
        args: The settings.
        is_launched_later: Whether a launcher will start the processes, so that only the devices count now.

    Raises:
        ConfigError: FSDP or DeepSpeed is asked for on a CPU, or in one process without a launcher; or Megatron-LM.
    """
    if is_on("ACCELERATE_USE_MEGATRON_LM"):
        raise ConfigError("ACCELERATE_USE_MEGATRON_LM is on, but Megatron-LM is not supported; take fsdp or deepspeed")
    asked = [name for name in ("fsdp", "deepspeed") if getattr(args, name)] + [*filter(is_on, _OF_LAUNCH)]
    if not asked or args.distributed_state.distributed_type not in _UNSHARDED:
        return
    if args.device.type == "cpu":
        where = "use_cpu is on" if torch.accelerator.is_available() else "there is none here"
        raise ConfigError(
            f"{asked[0]} is on, which takes an accelerator for each process, and {where}: each process would hold the"
            f" whole model; leave {asked[0]} out to train on CPUs"
        )
    if not is_launched_later:
        raise ConfigError(
            f"{asked[0]} is on, which takes processes that a launcher has started (oddsmith train --num-processes N,"
            f" torchrun, accelerate launch), and this is one without: nothing would be sharded; leave {asked[0]} out to"
            " train in one process"
        )
