"""Save and load the model of a run under FSDP2 or DeepSpeed, which shard its weights or what belongs to them.

the model of the run       whole, as without shards: files that any loader reads
checkpoints, FULL_STATE_DICT, or stage3_gather_16bit_weights_on_model_save
                           whole; FSDP2 reads them into its shards again
checkpoints, SHARDED_STATE_DICT, or ZeRO-3 without it
                           shards, as FSDP and DeepSpeed write them; an adapter is whole beside them
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedType,
    broadcast_object_list,
    fsdp2_apply_ac,
    fsdp2_prepare_model,
    save_fsdp_optimizer,
)
from peft import PeftModel
from peft.utils import get_peft_model_state_dict
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers.integrations.deepspeed import deepspeed_load_checkpoint

from ..checkpoint.store import step_of
from ..config import ORPOConfig
from ..errors import ConfigError
from ..model.whole import adapter_state, is_stored_by_its_names, read_whole, require_weights, write_whole
from .zero_worlds import other_worlds

# As transformers and accelerate name them.
OPTIMIZER_FILE, SCHEDULER_FILE, SHARDED_MODEL = "optimizer.bin", "scheduler.pt", "pytorch_model_fsdp"


class ShardedRun(Protocol):
    """What a ``ShardedModel`` needs of its run."""

    args: ORPOConfig
    accelerator: Accelerator
    model: Any
    model_wrapped: Any
    deepspeed: Any
    optimizer: Any
    lr_scheduler: Any

    def create_optimizer(self) -> Any: ...  # of the model, unless there is one


class ShardedModel:
    """The model of a run, where its weights are sharded.

    Args:
        run: The run.
    """

    def __init__(self, run: ShardedRun):
        self._run = run
        self._is_for_evaluation = False

    @property
    def is_sharded(self) -> bool:
        """Whether FSDP2 or DeepSpeed shards it, or what belongs to it."""
        return self._run.accelerator.is_fsdp2 or self._is_under_deepspeed

    @property
    def _is_under_deepspeed(self) -> bool:
        return self._run.accelerator.distributed_type == DistributedType.DEEPSPEED

    @property
    def _zero_stage(self) -> int:
        return int(
            self._run.accelerator.state.deepspeed_plugin.deepspeed_config.get("zero_optimization", {}).get("stage", 0)
        )

    @property
    def _model(self) -> Any:
        return self._run.accelerator.unwrap_model(self._run.model, keep_torch_compile=False)

    @property
    def _are_checkpoints_whole(self) -> bool:
        if self._run.args.save_only_model or isinstance(self._model, PeftModel):
            return True
        if self._is_under_deepspeed:
            zero = self._run.accelerator.state.deepspeed_plugin.deepspeed_config.get("zero_optimization", {})
            return self._zero_stage != 3 or bool(zero.get("stage3_gather_16bit_weights_on_model_save"))
        return self._is_full_state

    @property
    def _is_full_state(self) -> bool:
        if not self._run.accelerator.is_fsdp2:
            return False
        return "FULL_STATE_DICT" in str(self._run.accelerator.state.fsdp_plugin.state_dict_type)

    def require_saves_on_each_node(self) -> None:
        """Raise ``ConfigError`` where a checkpoint is one over all nodes, though each has a disk of its own."""
        run = self._run
        if run.accelerator.is_fsdp2 and not self._is_full_state and not run.args.save_only_model:
            raise ConfigError(
                "save_on_each_node: FSDP writes SHARDED_STATE_DICT as one checkpoint over all nodes; let them share"
                " output_dir and leave save_on_each_node out, or set state_dict_type to FULL_STATE_DICT"
            )

    def is_whole_in(self, folder: Path) -> bool:
        """Return whether the model is written whole into a folder, the run's or that of a checkpoint."""
        return not self.is_sharded or step_of(folder) is None or self._are_checkpoints_whole

    def state_to_save(self, *, embeddings: bool | str) -> dict[str, Tensor]:
        """Return what ``save_pretrained`` gets of a sharded model: an adapter, or nothing; all processes call this."""
        model = self._model
        if not isinstance(model, PeftModel):
            return {}
        options: dict[str, Any] = {"save_embedding_layers": embeddings}
        return adapter_state(
            model, self._device, lambda state: get_peft_model_state_dict(model, state_dict=state, **options)
        )

    def write(self, folder: Path) -> None:
        """Write the weights beside what ``save_pretrained`` has written of them; all processes call this."""
        if self.is_sharded and self.is_whole_in(folder) and not isinstance(self._model, PeftModel):
            write_whole(self._model, folder, self._device, is_writer=self._run.args.should_save)

    def require_written(self, folder: Path) -> None:
        """Read back what was to be written into a folder; ``SaveError`` where it is not there."""
        if self._run.args.should_save and self.is_whole_in(folder):
            require_weights(folder)

    @property
    def _device(self) -> torch.device:
        return self._run.accelerator.device

    def require_trainable(self) -> None:
        """Raise ``ConfigError`` where an optimizer holds the weights from before an evaluation, which FSDP2 sharded."""
        if self._is_for_evaluation and self._run.optimizer is not None:
            raise ConfigError(
                "the optimizer that was passed holds the weights from before evaluate(), for which FSDP sharded the"
                " model; leave the optimizer to the trainer, or evaluate after the training"
            )

    @contextmanager
    def trained_again(self) -> Iterator[None]:
        """Let a model be prepared that was sharded already, for an evaluation or a training before this one.

        DeepSpeed: transformers takes the engine from before, which is gone. FSDP2: accelerate gives the optimizer the
        parameters that have the addresses of its own. A forward pass without a backward pass leaves some gathered,
        though, whose memory is freed later; and all empty shares have one address.
        """
        run = self._run
        if self._is_under_deepspeed:
            run.model_wrapped, run.deepspeed = run.model, None
        sharded = [module for module in run.model.modules() if isinstance(module, FSDPModule)]
        if not sharded:
            yield
            return
        for module in sharded:
            module.reshard()
        plugin = run.accelerator.state.fsdp_plugin
        checkpointing, plugin.activation_checkpointing = plugin.activation_checkpointing, False  # is wrapped already
        parameters = [list(group["params"]) for group in run.create_optimizer().param_groups]
        try:
            yield
        finally:
            plugin.activation_checkpointing = checkpointing
        for group, own in zip(run.optimizer.param_groups, parameters, strict=True):
            group["params"] = own
        self._is_for_evaluation = False

    @contextmanager
    def evaluated(self) -> Iterator[None]:
        """Prepare the model for an evaluation outside of a training, which accelerate does for ZeRO-3 alone.

        FSDP2 shards it, and it stays so. ZeRO-1 and 2 leave the weights whole: nothing is sharded.
        """
        run, accelerator = self._run, self._run.accelerator
        if accelerator._models:  # prepared by a training
            yield
        elif accelerator.is_fsdp2:
            if not isinstance(run.model, FSDPModule):
                if accelerator.state.fsdp_plugin.activation_checkpointing:  # it has to lie within
                    run.model = fsdp2_apply_ac(accelerator, run.model)
                run.model = run.model_wrapped = fsdp2_prepare_model(accelerator, run.model)
                self._is_for_evaluation = True
            accelerator._models.append(run.model)
            try:
                yield
            finally:
                accelerator._models.clear()
        elif self._is_under_deepspeed and self._zero_stage < 3:
            run.model.to(self._device)
            accelerator._models.append(run.model)
            run.deepspeed = run.model  # else transformers would want an engine
            try:
                yield
            finally:
                accelerator._models.clear()
                run.deepspeed = None
        else:
            yield

    def other_worlds(self) -> AbstractContextManager[None]:
        """Let checkpoints be read that another number of processes wrote."""
        return other_worlds() if self._is_under_deepspeed else nullcontext()

    def load_engine(self, folder: Path) -> None:
        """Load a checkpoint into DeepSpeed's engine: weights, its own copies of them, the optimizer."""
        deepspeed_load_checkpoint(self._run.model_wrapped, str(folder), not isinstance(self._model, PeftModel))

    # ---- Checkpoints of FSDP2 that hold the model whole

    @property
    def is_saved_once(self) -> bool:
        """Whether FSDP's own copy of the weights is left out of checkpoints, because they are read from the model's."""
        return self._is_full_state and not isinstance(self._model, PeftModel) and is_stored_by_its_names(self._model)

    def write_states(self, folder: Path) -> None:
        """Write optimizer and schedule of a checkpoint that is saved once."""
        run, plugin = self._run, self._run.accelerator.state.fsdp_plugin
        save_fsdp_optimizer(plugin, run.accelerator, run.optimizer, run.model, str(folder))
        if run.args.should_save:
            torch.save(run.lr_scheduler.state_dict(), folder / SCHEDULER_FILE)

    def read(self, folder: Path) -> bool:
        """Read the weights of a checkpoint that was saved once; return whether it was."""
        if not self.is_saved_once or any(folder.glob(f"{SHARDED_MODEL}*")):
            return False
        read_whole(self._model, folder)
        return True

    def read_stateless_optimizer(self, folder: Path) -> bool:
        """Load an optimizer that keeps no state, such as plain SGD, and the schedule; return whether it is one.

        torch cannot load the full state of such an optimizer.
        """
        if not self._is_full_state:
            return False
        groups: list[Any] = [None]
        if self._run.accelerator.is_main_process:
            stored = torch.load(folder / OPTIMIZER_FILE, weights_only=True, mmap=True)
            if not stored["state"]:
                groups = [
                    [{name: group[name] for name in group.keys() - {"params"}} for group in stored["param_groups"]]
                ]
        broadcast_object_list(groups)
        if groups[0] is None:
            return False
        for group, saved in zip(self._run.optimizer.param_groups, groups[0], strict=True):
            group.update(saved)
        self._run.lr_scheduler.load_state_dict(torch.load(folder / SCHEDULER_FILE, weights_only=True))
        return True
