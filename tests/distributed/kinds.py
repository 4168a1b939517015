"""How weights, gradients and optimizer states lie over the processes: the rows of the table of these tests."""

from typing import Any


def fsdp(state_dict_type: str) -> dict[str, Any]:
    """Return the settings of FSDP2."""
    sharding = {"version": 2, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]}
    return {"fsdp": True, "fsdp_config": {**sharding, "state_dict_type": state_dict_type}}


def zero(stage: int, **options: Any) -> dict[str, Any]:
    """Return the settings of DeepSpeed's ZeRO of a stage."""
    automatic = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    config: dict[str, Any] = dict.fromkeys(automatic, "auto")
    config |= {"zero_allow_untested_optimizer": True, "zero_optimization": {"stage": stage, **options}}
    return {"deepspeed": config}


KINDS: dict[str, dict[str, Any]] = {
    "ddp": {},
    "fsdp-full": fsdp("FULL_STATE_DICT"),
    "fsdp-sharded": fsdp("SHARDED_STATE_DICT"),
    "zero-1": zero(1),
    "zero-2": zero(2),
    "zero-3": zero(3),
}
