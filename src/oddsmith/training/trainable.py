"""See that something is trained: refuse a run without trainable parameters, and name those that get no gradient."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerState

from ..errors import ConfigError, ModelError
from ..system.shards import whole_numel

logger = logging.getLogger(__name__)

MAX_NAMED = 4  # kinds of parameters in a message
_NO_GRADIENT = (
    "the loss depends on no trainable parameter, so nothing would be trained; trainable are {}: are these in use (an"
    " adapter that is not active is not)?"
)


def require_trainable(model: nn.Module) -> None:
    """Raise ``ModelError`` if no parameter of a model is trainable, or its adapter is merged into the base."""
    if any(isinstance(module, BaseTunerLayer) and module.merged for module in model.modules()):
        raise ModelError(
            "the adapter is merged into the base (merge_adapter()), where it gets no gradient; call unmerge_adapter()"
        )
    if any(True for _ in trainable(model)):
        return
    adapters = getattr(model, "peft_config", None)
    if not adapters:
        raise ModelError(
            "nothing is trainable: requires_grad is False for all parameters of the model; set it for those to train,"
            " or give peft_config"
        )
    if any(adapter.inference_mode for adapter in adapters.values()):
        raise ModelError(
            "nothing is trainable: the adapter was loaded frozen; load it with is_trainable=True, as in"
            " PeftModel.from_pretrained(base, adapter, is_trainable=True)"
        )
    raise ModelError(
        "nothing is trainable: the parameters of the adapter are frozen, too; switch it on (enable_adapter_layers(),"
        " set_adapter(name)), or load it with is_trainable=True"
    )


def require_gradient(loss: Tensor, model: nn.Module) -> None:
    """Raise ``ModelError`` if a loss does not depend on any trainable parameter; torch's own message names none."""
    if torch.is_grad_enabled() and not loss.requires_grad:
        raise ModelError(_NO_GRADIENT.format(in_words(name for name, _ in trainable(model))))


class GradientCheck(TrainerCallback):
    """Say after the first backward passes which trainable parameters got no gradient; stop if none did.

    A gradient of zero is one: in the first step that of a LoRA's A is zero, as its B starts at zero.

    Args:
        is_sharded: Whether the parameters are sharded over processes, which keep their gradients elsewhere.
    """

    def __init__(self, is_sharded: Callable[[], bool]):
        self._is_sharded = is_sharded
        self._is_due = False

    def on_train_begin(
        self, args: Any, state: TrainerState, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any
    ) -> None:
        """Refuse a model or an optimizer with which nothing would be trained."""
        require_trainable(model)
        self._is_due = not self._is_sharded()
        if self._is_due:
            self._compare(model, optimizer, is_main=state.is_world_process_zero)

    def on_pre_optimizer_step(
        self, args: Any, state: TrainerState, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        """Look at the gradients of the first step."""
        if not self._is_due:
            return
        self._is_due = False
        gradients = {name: weight.grad for name, weight in trainable(model)}
        without = [name for name, gradient in gradients.items() if gradient is None]
        if len(without) == len(gradients):  # checkpointed layers hide it from the loss
            raise ModelError(_NO_GRADIENT.format(in_words(without)))
        if not state.is_world_process_zero:
            return
        if not any(_is_nonzero(gradient) for gradient in gradients.values()):
            logger.warning(f"step {state.global_step + 1}: every gradient is zero, so nothing is trained")
        elif without:
            share = f"{len(without)} of {len(gradients)} trainable parameters"
            logger.warning(f"step {state.global_step + 1}: no gradient reaches {share}: {in_words(without)}")

    @staticmethod
    def _compare(model: nn.Module, optimizer: Any, *, is_main: bool) -> None:
        """Look for the trainable parameters in an optimizer, which a user may have made of other ones."""
        held = {id(weight) for group in getattr(optimizer, "param_groups", ()) for weight in group["params"]}
        missing = [name for name, weight in trainable(model) if id(weight) not in held]
        if held and len(missing) == len(list(trainable(model))):
            raise ConfigError(
                "nothing is trainable: the optimizer holds none of the model's trainable parameters; make it of those"
                " of the model as it is trained (with peft_config: leave the optimizer to the trainer)"
            )
        if held and missing and is_main:
            logger.warning(f"the optimizer does not hold {len(missing)} trainable parameters: {in_words(missing)}")


def trainable(model: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    """Yield the trainable parameters of a model by name, without empty ones."""
    return ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad and whole_numel(weight))


def parameter_counts(model: Any) -> tuple[int, int]:
    """Return how many parameters of a model are trained, and how many it has, over all processes.

    Under an adapter 4-bit weights are counted as the weights that they encode.
    """
    if hasattr(model, "get_nb_trainable_parameters"):
        return model.get_nb_trainable_parameters()
    trained = sum(whole_numel(parameter) for parameter in model.parameters() if parameter.requires_grad)
    return trained, sum(map(whole_numel, model.parameters()))


def operations_a_token(model: nn.Module) -> int:
    """Return what transformers estimates for a step, of a model that looks empty to it (``system/shards.py``)."""
    embedded = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return 6 * sum(whole_numel(weight) for weight in model.parameters() if id(weight) not in embedded)


def needed_share(model: Any) -> float:
    """Return which share of those operations is needed: frozen weights take no gradient, 4 of the 6 a token."""
    trained, total = parameter_counts(model)
    return (4 * total + 2 * trained) / (6 * total) if total else 1.0


def in_words(names: Iterable[str]) -> str:
    """Name parameters in a message: ``model.layers.*.mlp.up_proj.weight (24), lm_head.weight``."""
    kinds = Counter(re.sub(r"(?<=\.)\d+(?=\.)", "*", name.removeprefix("base_model.model.")) for name in names)
    named = [f"{kind} ({count})" if count > 1 else kind for kind, count in kinds.items()]
    more = f" and {len(named) - MAX_NAMED} other kinds" if len(named) > MAX_NAMED else ""
    return ", ".join(named[:MAX_NAMED]) + more


def _is_nonzero(gradient: Tensor | None) -> bool:
    return gradient is not None and bool(gradient.any())
