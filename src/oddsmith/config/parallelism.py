"""Refuse what splits a model or a sequence over processes: here each process trains on pairs of its own.

    where it is asked for                              who reads it
    parallelism_config, in Python or a recipe          accelerate
    PARALLELISM_CONFIG_*, Megatron, in the environment accelerate; ``accelerate launch`` sets them from its file
    an Accelerator that the script has made            accelerate
    model_init_kwargs                                  transformers, when it loads the model
    the settings of deepspeed                          DeepSpeed
    a model that is loaded already                     ``training/preflight.py`` refuses it

Ranks of one group would have to get the same pairs, and every count of processes to be one of groups. Sizes of data
parallelism alone (FSDP within replicas) are accepted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import fields
from typing import Any

from accelerate import ParallelismConfig
from accelerate.state import AcceleratorState

from ..errors import ConfigError
from ..system.launchers import is_on
from ..system.strict_json import read_json

KINDS = {"tp_size": "tensor", "cp_size": "context", "sp_size": "sequence"}
INSTEAD = (
    "each process trains on pairs of its own here (data parallelism alone); leave it out, and let fsdp or deepspeed"
    " shard the weights"
)
FLAG = "ACCELERATE_USE_PARALLELISM_CONFIG"
PREFIX = "PARALLELISM_CONFIG_"
LAUNCHER = "in the environment, as accelerate launch sets it from its file and flags"
# Arguments of ``from_pretrained`` that give a process a part of the weights.
LOADED_IN_PARTS = ("tp_plan", "tp_size", "device_mesh", "distributed_config")
# Keys of DeepSpeed's settings, at any depth.
OF_DEEPSPEED = {
    "autotp_size": "tensor",
    "tp_size": "tensor",
    "sequence_parallel_size": "sequence",
    "autoep_size": "expert",
    "ep_size": "expert",
    "expert_tensor_parallel_size": "expert",
    "stages": "pipeline",
}
PASSES_OF_DEEPSPEED = {"autotp": "tensor", "autosp": "sequence"}


def read_parallelism(given: Any) -> ParallelismConfig | None:
    """Return ``parallelism_config`` as accelerate's object; it may be a mapping of its fields, or the JSON of one.

    ``ConfigError`` if it is something else, or has a field or a value that accelerate does not take.
    """
    if given is None or isinstance(given, ParallelismConfig):
        return given
    if isinstance(given, str) and given.startswith("{"):  # from a parser of transformers
        with suppress(ValueError):
            given = read_json(given)
    names = [field.name for field in fields(ParallelismConfig) if field.init]
    if not isinstance(given, Mapping) or not set(given) <= set(names):
        raise ConfigError(f"parallelism_config is {given!r}; expected a mapping of {', '.join(names[:3])}")
    try:
        return ParallelismConfig(**given)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"parallelism_config: {error}") from error


def require_data_parallel(given: ParallelismConfig | None, model_init_kwargs: Any) -> None:
    """Refuse every other parallelism that settings, environment or script ask for, before anything is loaded.

    Args:
        given: ``parallelism_config`` of the settings.
        model_init_kwargs: Of the settings; read later if it is not a mapping.

    Raises:
        ConfigError: There is one.
    """
    made = AcceleratorState._shared_state.get("parallelism_config")
    for where, config in (("parallelism_config", given), ("the Accelerator that exists already", made)):
        for name, kind in KINDS.items():
            if config is not None and (size := getattr(config, name)) > 1:
                raise ConfigError(f"{where} has {name} {size} ({kind} parallelism); {INSTEAD}")
    if is_on(FLAG):
        for name, kind in KINDS.items():
            variable = PREFIX + name.upper()
            if (size := os.environ.get(variable, "1")) not in ("1", "None", ""):
                raise ConfigError(f"{variable} is {size} ({kind} parallelism) {LAUNCHER}; {INSTEAD}")
    if is_on("ACCELERATE_USE_MEGATRON_LM"):
        raise ConfigError(f"ACCELERATE_USE_MEGATRON_LM is on {LAUNCHER}; Megatron-LM trains models of its own kind;"
                          f" {INSTEAD}")  # fmt: skip
    options = model_init_kwargs if isinstance(model_init_kwargs, Mapping) else {}
    for name in LOADED_IN_PARTS:
        if options.get(name) not in (None, 1):
            raise ConfigError(f"model_init_kwargs has {name}, which splits the model over processes; {INSTEAD}")


def require_sizes(given: ParallelismConfig | None, processes: int, *, is_fsdp: bool, is_deepspeed: bool) -> None:
    """Refuse sizes of data parallelism that the processes of the run do not have.

    Args:
        given: ``parallelism_config`` of the settings; if ``None``, that of the environment.
        processes: Of the run.
        is_fsdp: Whether FSDP shards the weights.
        is_deepspeed: Whether DeepSpeed does.

    Raises:
        ConfigError: They do not fit.
    """
    config = given or (ParallelismConfig() if is_on(FLAG) else None)
    if config is None or config.total_size == 1:
        return
    shown = f"parallelism_config has dp_replicate_size {config.dp_replicate_size}, dp_shard_size {config.dp_shard_size}"
    if config.total_size != processes:
        raise ConfigError(f"{shown}: {config.total_size} processes, and there are {processes}")
    if (config.dp_shard_size > 1) is not is_fsdp and not is_deepspeed:
        how = "is not set" if config.dp_shard_size > 1 else "is"
        raise ConfigError(f"{shown}, and fsdp {how}: fsdp shards over dp_shard_size processes, 2 or more; set both or"
                          " none")  # fmt: skip


def require_data_parallel_deepspeed(config: Mapping[str, Any]) -> None:
    """Refuse every other parallelism in DeepSpeed's settings; ``ConfigError`` if there is one."""
    for name, value in _entries(config):
        kind = OF_DEEPSPEED.get(name) if isinstance(value, int) and value > 1 else None
        if name == "expert_parallel" and isinstance(value, Mapping) and value.get("enabled"):
            kind = "expert"
        if name == "passes" and isinstance(value, list):
            kind = next((PASSES_OF_DEEPSPEED[one] for one in value if one in PASSES_OF_DEEPSPEED), None)
        if kind is not None:
            raise ConfigError(f"deepspeed has {name} {value} ({kind} parallelism); {INSTEAD.replace('fsdp or ', '')}")


def _entries(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        yield name, value
        if isinstance(value, Mapping):
            yield from _entries(value)
