"""Refuse, before anything is loaded, an optimizer of transformers (``optim``) that cannot train here, with the reason.

whole steps    all but LOMO and the layerwise ones, which change weights within the backward pass
checkpoints    all but those of ``_NOT_IN_CHECKPOINTS``
packages       those of ``_PACKAGES``, which transformers imports when training begins
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, MissingExtraError
from ..system.words import word_of

if TYPE_CHECKING:
    from transformers import TrainingArguments

_WITHIN_BACKWARD = ("lomo", "adalomo")
LESS_MEMORY = "adafactor, paged_adamw_8bit or an adapter (LoRA) save memory, too"
# GaLore and APOLLO keep objects in their state that only pickling writes; GrokAdamW keeps its state beside it.
_NOT_IN_CHECKPOINTS = ("galore_", "apollo_", "grokadamw")
_NAMED_MODULES = ("galore_", "apollo_")  # they project the gradients of the modules of ``optim_target_modules``
# Beginning of the name -> module, and what pip installs.
_PACKAGES = {
    **dict.fromkeys(
        ("adamw_bnb_", "adamw_8bit", "ademamix", "lion_", "paged_", "rmsprop_bnb"), ("bitsandbytes", "bitsandbytes")
    ),
    "galore_": ("galore_torch", "galore-torch"),
    "apollo_": ("apollo_torch", "apollo-torch"),
    "grokadamw": ("grokadamw", "grokadamw"),
    "schedule_free_": ("schedulefree", "schedulefree"),
    "stable_adamw": ("optimi", "torch-optimi"),
    "adamw_torch_4bit": ("torchao", "torchao"),
    "adamw_torch_8bit": ("torchao", "torchao"),
    "adamw_torch_xla": ("torch_xla", "torch_xla"),
    "adamw_torch_npu_fused": ("torch_npu", "torch-npu"),
    "adamw_anyprecision": ("torchdistx", "git+https://github.com/pytorch/torchdistx"),
}


def require_usable(args: TrainingArguments | Any) -> None:
    """Refuse ``args.optim`` where it cannot make whole steps, cannot be saved as ``args`` say, or is not installed."""
    name = word_of(args.optim)
    if name in _WITHIN_BACKWARD or name.endswith("_layerwise"):
        raise ConfigError(f"optim is {name}, {not_whole_steps()}")
    for beginning, (module, package) in _PACKAGES.items():
        if name.startswith(beginning) and find_spec(module) is None:
            raise MissingExtraError(f"optim: {name}", package=package)
    if name.startswith(_NAMED_MODULES) and args.optim_target_modules is None:
        raise ConfigError(f"optim is {name}, but optim_target_modules is missing; name its modules, or all-linear")
    if name == "galore_adamw_8bit" and not _has_nvidia_gpu():
        raise ConfigError(f"optim is {name}, which needs an NVIDIA GPU; galore_adamw does not")
    saves = word_of(args.save_strategy) != "no"
    if name.startswith(_NOT_IN_CHECKPOINTS) and saves and not args.save_only_model:
        raise ConfigError(
            f"optim is {name}, whose state cannot be written into a checkpoint; set save_only_model: true (no run can"
            " be resumed from such a checkpoint), or save_strategy: no"
        )


def _has_nvidia_gpu() -> bool:
    import torch  # needed by one optimizer alone; all else is refused before it is imported

    return torch.cuda.is_available()


def not_whole_steps() -> str:
    """Word why an optimizer that steps within the backward pass is refused, after its name."""
    return (
        "which changes the weights within the backward pass, at every micro-batch: a step would not be whole, and a NaN"
        f" could not be skipped; {LESS_MEMORY}"
    )
