"""Change a model for its training, and give it back as it was: only its weights are other ones then.

    towers                 what reads images or sound is frozen from the trainer's constructor on (``text_part.py``)
    dropout rates          set to 0 from the trainer's constructor on, if ``disable_dropout`` is on
    use_cache              set by the constructor of transformers' ``Trainer``
    checkpointing          switched on by transformers, with a hook on the embeddings that gives their output a gradient
    forward under autocast an attribute of the model, set by accelerate
    training mode          set by transformers at each step

What stays would act on whatever comes next: a second training in float32 would compute in bf16, or checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..config import ORPOConfig
from ..model.loading.setup import disable_dropout
from ..model.text_part import freeze_outside_text

# Attributes of modules: accelerate's, then transformers'.
ATTRIBUTES = (
    *("forward", "_original_forward", "_is_accelerate_prepared"),
    *("gradient_checkpointing", "_gradient_checkpointing_func", "_require_grads_hook", "_require_grads_hooks"),
    *("neftune_noise_alpha", "training"),
)
# Forward hooks, by the names of their functions; the second is left where a training ends with an error.
HOOKS = ("make_inputs_require_grads", "make_inputs_require_grad", "neftune_post_forward_hook")


class ModelLoan:
    """A model in the hands of a trainer.

    Args:
        model: The model, with its adapter, not wrapped.
        args: The settings of the run.
    """

    def __init__(self, model: nn.Module, args: ORPOConfig):
        self.model, self._args = model, args
        self._config: Any = getattr(model, "config", None)
        self._use_cache = getattr(self._config, "use_cache", None)
        self._rates = disable_dropout(model) if args.disable_dropout else []
        self._frozen = freeze_outside_text(model)
        self._attributes: dict[nn.Module, dict[str, Any]] = {}
        self._hooks: dict[nn.Module, set[int]] = {}

    def begin(self) -> None:
        """Note how the model is now, and change it for a training."""
        self.note()
        if self._args.disable_dropout:
            self._rates += disable_dropout(self.model)  # nothing, in the first training
        self._frozen += freeze_outside_text(self.model)
        if self._use_cache is not None:
            self._config.use_cache = self._args.use_cache
        # Frozen embeddings give no gradient to the input of a checkpointed layer.
        model: Any = self.model
        checkpointed = any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
        if (self._args.gradient_checkpointing or checkpointed) and hasattr(model, "peft_config"):
            model.enable_input_require_grads()

    def note(self) -> None:
        """Note attributes and hooks as they are now."""
        modules = list(self.model.modules())
        self._attributes = {
            module: {name: vars(module)[name] for name in ATTRIBUTES if name in vars(module)} for module in modules
        }
        self._hooks = {module: set(module._forward_hooks) for module in modules}

    def take_off(self, *, keep: tuple[str, ...] = ()) -> None:
        """Take off attributes and hooks that have come since they were noted, but those in ``keep``."""
        for module, before in self._attributes.items():
            now = vars(module)
            for name in ATTRIBUTES:
                if name in before:
                    now[name] = now[name] if name in keep else before[name]
                elif name not in keep:
                    now.pop(name, None)
            for key, hook in list(module._forward_hooks.items()):
                if key not in self._hooks[module] and getattr(hook, "__name__", "") in HOOKS:
                    del module._forward_hooks[key]
        self._attributes, self._hooks = {}, {}

    @contextmanager
    def rounded(self) -> Iterator[None]:
        """Have the weights inside as ``bf16_full_eval`` or ``fp16_full_eval`` asks.

        transformers rounds them, and leaves them rounded, after the path of the evaluation is chosen.
        """
        args = self._args
        dtype = torch.bfloat16 if args.bf16_full_eval else torch.float16 if args.fp16_full_eval else None
        if dtype is None:
            yield
            return
        tensors = [*self.model.parameters(), *self.model.buffers()]
        values = [tensor.data for tensor in tensors]
        try:
            self.model.to(dtype=dtype, device=args.device)
            yield
        finally:
            for tensor, value in zip(tensors, values, strict=True):
                tensor.data = value

    def give_back(self) -> None:
        """Undo all changes."""
        self.take_off()
        for module, name, rate in self._rates:
            setattr(module, name, rate)
        for weight in self._frozen:
            weight.requires_grad_(True)
        self._rates, self._frozen = [], []
        if self._use_cache is not None:
            self._config.use_cache = self._use_cache
