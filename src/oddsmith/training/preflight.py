"""Refuse a run before its first step: no room to save, pairs that cannot be read, no whole steps, several GPUs."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

from ..batching.loader import no_whole_step
from ..batching.plan import StepShape, num_steps
from ..checkpoint.space import (
    CheckpointSize,
    Room,
    checkpoint_size,
    file_size_limit,
    measure_room,
    require_writable,
)
from ..config import ORPOConfig
from ..config.optimizers import not_whole_steps
from ..config.parallelism import INSTEAD
from ..data.limits import readable
from ..errors import ConfigError
from ..model.limits import limits_of, require_pad_token
from ..system.files import in_units
from ..system.words import word_of
from ..usual import too_low_for_adapter
from .trainable import parameter_counts

logger = logging.getLogger(__name__)


class Preflight(TrainerCallback):
    """Check optimizer and disk before training starts, in every process, so that all end if there is no room."""

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: Any,
        model: Any = None,
        processing_class: Any = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Refuse a run that cannot be saved; warn if only its first checkpoints can be."""
        require_whole_steps(optimizer)
        if getattr(model, "peft_config", None) and state.is_world_process_zero:
            line = too_low_for_adapter(args.learning_rate, parameter_counts(model)[1])
            if line is not None:
                logger.warning(line)
        run = Path(args.output_dir)
        require_writable(run)
        size = size_in_training(args, state, model, processing_class, optimizer)
        room = measure_room(run, size, saves=saves_to_come(args, state), limit=args.save_total_limit)
        warning = require_room(run, room)
        if warning and state.is_world_process_zero:
            logger.warning(warning)


def require_readable(run: Any) -> None:
    """Require that the model of a trainer can read its datasets and the token that they are padded with."""
    require_pad_token(limits_of(run.model), run.pair_tokenizer.tokenizer, run.args.padding_value)
    run.train_dataset = readable_by(run, run.train_dataset, "train")
    if isinstance(run.eval_dataset, Mapping):
        run.eval_dataset = {name: readable_by(run, rows, name) for name, rows in run.eval_dataset.items()}
    else:
        run.eval_dataset = readable_by(run, run.eval_dataset, "eval")


def readable_by(run: Any, rows: Any, source: str) -> Any:
    """Require that the model of a trainer can read the rows of a dataset, once there is a model; return them."""
    if rows is None or getattr(run, "model", None) is None:
        return rows
    return readable(rows, limits_of(run.model), run.pair_tokenizer.tokenizer, source)


def check_devices(args: ORPOConfig, model: Any, *, is_trained: bool) -> None:
    """Refuse to train a model that is partly not on the GPU, and tell of GPUs that this process does not use.

    transformers would use them by ``DataParallel``, which has more pairs in a step, computes outside of autocast, and
    cannot scatter packed rows. ``device_map`` may spread a model over several, or leave layers off the GPU: their
    weights are not there to be trained.
    """
    require_unsplit(model)
    devices = devices_of(model)
    if args.world_size > 1 and len(devices) > 1:
        raise ConfigError(
            f"device_map has spread the model over {len(devices)} devices, and {args.world_size} processes train it;"
            " leave device_map out: each process has one device, and fsdp or deepspeed shards what is too large for it"
        )
    left = sorted({str(device) for device in devices} & {"cpu", "disk"})
    if is_trained and left and len(devices) > 1:
        raise ConfigError(
            f"device_map has left a part of the model on the {' and the '.join(left)}, where it cannot be trained;"
            " leave device_map out, or take load_in_4bit or a smaller model"
        )
    gpus = args.visible_gpus
    if gpus > 1 and len(devices) < 2:
        logger.warning(
            f"This process sees {gpus} GPUs and uses one, {args.device}. To use all of them, start one process for"
            f" each: oddsmith train --num-processes {gpus}, or accelerate launch --num_processes {gpus} SCRIPT."
        )


def require_unsplit(model: Any) -> None:
    """Refuse a model of which each process holds a part other than FSDP's: its processes would have to share pairs."""
    parameters = model.parameters() if isinstance(model, nn.Module) else ()
    split = [parameter for parameter in parameters if isinstance(parameter, DTensor)]
    by_fsdp = isinstance(model, FSDPModule) and all(sum(p.is_shard() for p in one.placements) < 2 for one in split)
    is_split_at_load = getattr(model, "is_distributed_loading_by_transformers", False)
    if is_split_at_load or (getattr(model, "tp_size", None) or 1) > 1 or (split and not by_fsdp):
        raise ConfigError(
            "the model was split over processes when it was loaded (tp_plan, device_mesh, distributed_config, or by"
            f" hand); {INSTEAD}"
        )


def devices_of(model: Any) -> set[Any]:
    """Return the devices over which ``device_map`` has spread a model; none without it."""
    return set((getattr(model, "hf_device_map", None) or {}).values())


def require_whole_steps(optimizer: Any, model: nn.Module | None = None) -> None:
    """Refuse an optimizer object that changes weights within the backward pass, wherever it was made.

    Warn of hooks on the parameters of ``model`` by which one may do so: they run at every micro-batch.
    """
    inner = getattr(optimizer, "optimizer", optimizer)  # in accelerate's wrapper
    if hasattr(inner, "fused_backward") or isinstance(inner, LayerWiseDummyOptimizer):  # LOMO's way, and GaLore's
        raise ConfigError(f"the optimizer is {type(inner).__name__}, {not_whole_steps()}")
    parameters = model.parameters() if model is not None else ()
    if hooked := sum(bool(parameter._post_accumulate_grad_hooks) for parameter in parameters):
        logger.warning(
            f"{hooked} parameters have hooks that run after each backward pass, so at every micro-batch: an optimizer"
            " that makes its step there does not make whole steps"
        )


def size_in_training(
    args: TrainingArguments, state: TrainerState, model: Any, tokenizer: Any, optimizer: Any
) -> CheckpointSize:
    """Return the bytes of the last checkpoint of a run, which has the longest history of logs."""
    return checkpoint_size(
        model,
        tokenizer,
        optim=word_of(args.optim),
        optimizer=optimizer,
        save_only_model=args.save_only_model,
        processes=args.world_size,
        log_lines=math.ceil(state.max_steps / max(1, state.logging_steps or 1)),
    )


def saves_to_come(args: TrainingArguments, state: TrainerState) -> int:
    """Return how many checkpoints a run will still write, at most."""
    strategy = word_of(args.save_strategy)
    steps = state.max_steps - state.global_step
    if strategy == "no" or steps <= 0:
        return 0
    if strategy == "epoch":
        return math.ceil(state.num_train_epochs - (state.epoch or 0))
    every = state.eval_steps if strategy == "best" else state.save_steps
    return math.ceil(steps / max(1, every or 1))


def steps_of_run(args: TrainingArguments, pairs: int, pairs_per_step: int) -> int:
    """Return the optimizer steps of a run over so many pairs; ``ConfigError`` where there is none."""
    shape = StepShape(pairs_per_step, 1, 1)
    steps = num_steps(pairs, shape, drop_last=args.dataloader_drop_last)
    if not steps:
        raise no_whole_step(pairs, pairs_per_step)
    return args.max_steps if args.max_steps > 0 else math.ceil(steps * args.num_train_epochs)


def require_room(run: Path, room: Room) -> str | None:
    """Refuse a run that cannot be saved; return a warning if only its first checkpoints can be.

    ``ConfigError`` if not even one checkpoint and the final model fit, or a file may not become that large.
    """
    least = room.size.final_bytes + (sum(room.size) if room.wanted else 0)
    if room.free < least:
        what = "a checkpoint and the final model take" if room.wanted else "the final model takes"
        raise ConfigError(
            f"output_dir {run}: {what} {in_units(least)}, and {in_units(room.free)} are free there; make room, or"
            " choose another output_dir"
        )
    limit = file_size_limit()
    if limit is not None and limit < room.size.largest_file_bytes:
        raise ConfigError(
            f"output_dir {run}: a file of {in_units(room.size.largest_file_bytes)} will be saved, and no file may"
            f" become larger than {in_units(limit)} here; raise that limit (ulimit -f)"
        )
    if room.fits >= room.wanted:
        return None
    return (
        f"output_dir {run}: {in_units(room.free)} are free, enough for {room.fits} of the {room.wanted} checkpoints of"
        f" {in_units(sum(room.size))} that will lie there; make room, or set save_total_limit, save_only_model or"
        " another output_dir"
    )
