"""``oddsmith plan``: predict a run from its recipe, without starting it or loading weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError
from ...system.outside import read_text
from ...system.strict_json import read_object
from ..parsing.first_look import first_look
from ..parsing.resolve import Option, Resolved, build, resolve
from ..parsing.schema import fields_for_run, flag_of
from ..parsing.values import whole_number
from ..terminal.console import STARTING, quiet_libraries, working
from ..terminal.outcome import JSON, RECIPE, TRACEBACK
from .train.command import require_names

if TYPE_CHECKING:
    from ...planning.cards import Gpu
    from ...planning.recipe import Machine
    from ..parsing.resolve import Settings

USAGE = "oddsmith plan CONFIG.yaml [--gpu h100x8 --nodes 2] [--any-setting VALUE ...]"
INTRO = (
    "Predicts a run before it is started: memory of a rank by its parts for each way to train the model there (all"
    " weights, LoRA, LoRA on 4 bits; DDP, FSDP2, ZeRO-2 and 3), which of them fit, the time of a step, and how balanced"
    " the steps are over the real lengths of the pairs. Takes the settings of `oddsmith train`. No weights are loaded;"
    " the pairs are tokenized, of a large set a sample.",
    "Without --gpu it plans for this machine. Times are predicted, and were not measured on a GPU.",
)
OPTIONS = (
    RECIPE,
    Option(
        "gpu", "value", "GPU to plan for: h100, rtx4090, ..., or its memory, such as 24GB; h100x8: eight.", "NAME|SIZE"
    ),
    Option("gpus", "value", "GPUs of a machine; without --gpu the processes. [1]", "N"),
    Option("nodes", "value", "Machines. [1]", "N"),
    Option("full", "switch", "Tokenize all pairs, not a sample; a run finds their tokens in the cache."),
    JSON,
    TRACEBACK,
)
SETTINGS_IN_HELP = ()
MOST_GPUS, MOST_NODES = 64, 4096
# What a run asks of the machine it starts on, which need not be this one.
OF_SHARDING = ("fsdp", "fsdp_config", "deepspeed", "parallelism_config")
OF_DEVICE = ("use_cpu", "bf16", "fp16", "tf32")


def plan(arguments: Sequence[str]) -> dict[str, Any]:
    """Run ``oddsmith plan``; return the plan as JSON values."""
    quiet_libraries()
    resolved = resolve(arguments, fields_for_run(), OPTIONS)
    require_names(resolved)
    given = resolved.options
    first_look(resolved, only_plans=True)
    nodes = _within(MOST_NODES, whole_number(given, "nodes", 1), "nodes")
    with working(STARTING):
        gpu, gpus = given_gpus(given)
        asked = {name: resolved.get(name) for name in (*OF_SHARDING, *OF_DEVICE)}
        settings = settings_on(resolved, gpu, asked)

        from ...planning.ranks import sharing_of
        from ...planning.recipe import plan_recipe, stored_base
        from ..terminal.plan_table import document_of, print_plan
        from .train.rehearsal import rehearse

        machine = machine_of(gpu, settings, gpus=gpus, nodes=nodes)
        asked["deepspeed"] = _mapping(asked["deepspeed"])
        asked["parallelism_config"] = _parallelism(asked, machine.ranks)
        sharing = sharing_of(asked, machine.ranks, bf16=bool(settings.orpo.bf16), on_gpu=machine.on_gpu)
    sets, _ = rehearse(settings, full="full" in given)
    train = sets["train"]
    if train.refusal is not None:
        raise train.refusal
    share = train.report.kept / max(train.report.rows, 1)
    total = None if train.is_whole or train.rows is None else math.floor(train.rows * share)
    with working("planning"):
        machine = as_of_a_run(machine, settings)
        model = settings.model
        stored = stored_base(settings.orpo, model, machine, adapter=model.use_peft)
        found = plan_recipe(settings.orpo, model, train.tokens, machine, sharing, stored=stored, total=total)
    if "json" not in given:
        print_plan(found, train)
    return document_of(found, train)


def given_gpus(given: Mapping[str, str], beside: Sequence[int] = ()) -> tuple[Gpu | None, int]:
    """Read ``--gpu`` and ``--gpus``: the GPU, ``None`` for this machine, and how many, by default 1.

    ``--gpu h100x8`` counts them, too; ``beside`` are counts from elsewhere on the command line.
    """
    gpu, counts = None, [*beside]
    if "gpu" in given:
        from ...planning.cards import gpus_of

        gpu, count = gpus_of(given["gpu"])
        counts += [] if count is None else [count]
    if "gpus" in given:
        counts.append(whole_number(given, "gpus", 1))
    if len(set(counts)) > 1:
        raise ConfigError(f"the number of GPUs is given as {' and as '.join(map(str, counts))}; give it once")
    return gpu, _within(MOST_GPUS, counts[0] if counts else 1, "gpus")


def _within(most: int, count: int, name: str) -> int:
    """Return a count that is 1 to ``most``; refuse another one by the name of its flag."""
    if not 1 <= count <= most:
        expected = "1 or more" if count < 1 else f"at most {most:,}"
        raise ConfigError(f"{flag_of(name)} is {count:,}; expected {expected}")
    return count


def settings_on(resolved: Resolved, gpu: Gpu | None, asked: Mapping[str, Any]) -> Settings:
    """Build the settings as on the machine that is planned for."""
    for name in OF_SHARDING:
        resolved.settings.pop(name, None)
    if gpu is None:
        return build(resolved)
    for name in OF_DEVICE:
        resolved.settings.pop(name, None)
    settings = build(resolved)
    orpo = settings.orpo
    wanted = [name for name in ("bf16", "fp16") if asked[name]]
    is_settled = bool(wanted) or asked["bf16"] is False
    name = wanted[0] if wanted else "fp32" if is_settled else gpu.precision
    orpo.bf16, orpo.fp16, orpo.use_cpu = name == "bf16", name == "fp16", False
    return settings


def machine_of(gpu: Gpu | None, settings: Settings, *, gpus: int, nodes: int) -> Machine:
    """Return what is planned for: a GPU by its name, or what is here."""
    import torch

    from ...model.loading.setup import run_dtype
    from ...model.logprobs.token_budget import free_bytes
    from ...planning.cards import Gpu, card_of
    from ...planning.recipe import Machine
    from ...planning.step_time import this_cpu

    is_here = gpu is None
    if gpu is None and torch.cuda.is_available() and not settings.orpo.use_cpu:
        name, memory = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory
        gpu = Gpu(name, memory, card_of(name, memory))
    if gpu is not None:
        return Machine(gpu.name, gpu.memory, gpu.card, True, gpus, nodes, 0, is_here)
    settings.orpo.use_cpu = True
    own = _own_bytes()
    # The rest of what is free, and this process, which ends before the run begins.
    free = (free_bytes(torch.device("cpu")) + own) // gpus
    return Machine("this machine's CPU", free, this_cpu(free, run_dtype(settings.orpo)), False, gpus, nodes, own)


def as_of_a_run(machine: Machine, settings: Settings) -> Machine:
    """Return the machine with what a run has loaded on a CPU: what this process has, once it has read pairs as a run.

    In 16 bits, the kernels as well that a CPU compiles.
    """
    from ...model.loading.setup import run_dtype
    from ...system.memory import KEPT_KERNELS, KERNEL_BYTES

    if machine.on_gpu:
        return machine
    kernels = KEPT_KERNELS * KERNEL_BYTES if run_dtype(settings.orpo).itemsize == 2 else 0
    return replace(machine, process_bytes=_own_bytes() + kernels)


def _own_bytes() -> int:
    """Return the private memory of this process."""
    import psutil

    memory = psutil.Process().memory_info()
    return int(memory.rss - getattr(memory, "shared", 0))


def _parallelism(asked: Mapping[str, Any], ranks: int) -> Any:
    """Return accelerate's object of ``parallelism_config``, which has to fit the processes that are planned for."""
    from ...config.parallelism import read_parallelism, require_data_parallel, require_sizes

    config = read_parallelism(asked["parallelism_config"])
    if config is None:
        return None
    require_data_parallel(config, None)
    if config.total_size not in (1, ranks):
        raise ConfigError(
            f"parallelism_config is for {config.total_size:,} processes, and the plan for {ranks:,}; give --gpus and"
            " --nodes"
        )
    require_sizes(config, ranks, is_fsdp=bool(asked["fsdp"]), is_deepspeed=asked["deepspeed"] is not None)
    return config


def _mapping(given: Any) -> Any:
    """Return the settings of DeepSpeed that a recipe names: a mapping, its JSON, or a file with it."""
    if not isinstance(given, str):
        return given
    try:
        return read_object(given if given.lstrip().startswith("{") else read_text(Path(given).expanduser()))
    except (OSError, ValueError) as error:
        raise ConfigError(f"deepspeed is {given[:60]!r}: it cannot be read as JSON ({error})") from error
