"""Merge an adapter into the weights of its base: W + scale * B A, and the variants of DoRA, rsLoRA and PiSSA.

The sum is computed in float32, layer by layer, whatever the base's type: in bf16 it would be rounded more than once
(DoRA computes its norms in the type of the weights).
"""

from __future__ import annotations

import warnings

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PreTrainedModel

from ..errors import ModelError
from .text_part import outside_parameters, stored_dtype


def merge_weights(model: PeftModel, dtype: torch.dtype) -> PreTrainedModel:
    """Merge an adapter into its base, and return the base; ``model`` must not be used afterwards.

    Merged weights get the type ``dtype``; the others keep theirs. If embedding and head are one weight and the adapter
    changes only one of them, they become two, and ``config.tie_word_embeddings`` becomes ``False``. Raise
    ``ModelError`` for an adapter that is no change of weights, such as a learned prompt.
    """
    if not isinstance(model.base_model, BaseTuner):
        kind = model.active_peft_config.peft_type
        kind = getattr(kind, "value", kind)
        raise ModelError(f"a {kind} adapter cannot be merged; only changes of weights can (LoRA, DoRA, IA3, ...)")
    _untie_adapted(model.get_base_model())
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.float()
            module.merge()
            module.to(dtype)
    with warnings.catch_warnings():
        # Each layer warns "already merged", and that embedding and head are two weights now: both are intended.
        warnings.simplefilter("ignore")
        merged = model.merge_and_unload()
    # The configuration has to state whether the weights are tied, or an untied head would not be saved.
    if getattr(merged.config, "tie_word_embeddings", False) and not is_tied(merged):
        merged.config.get_text_config().tie_word_embeddings = merged.config.tie_word_embeddings = False
    if not getattr(merged.config, "tie_word_embeddings", False):
        merged.all_tied_weights_keys = merged.get_expanded_tied_weights_keys(all_submodels=False)
    return merged


def is_tied(model: PreTrainedModel) -> bool:
    """Return whether input embedding and head are one weight."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    return head is not None and plain_layer(head).weight is plain_layer(embedding).weight


def plain_layer(layer: nn.Module) -> nn.Module:
    """Return the layer that PEFT has put others around, to train it in full, some of its rows, or by LoRA."""
    while isinstance(layer, AuxiliaryTrainingWrapper | BaseTunerLayer):
        layer = layer.original_module if isinstance(layer, AuxiliaryTrainingWrapper) else layer.get_base_layer()
    return layer


def cast_parameters(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast all parameters in place, but what text does not reach into the type of its files.

    Buffers keep their type: those of rotary embeddings need float32.
    """
    outside = {id(weight) for _, weight in outside_parameters(model)} if stored_dtype(model) else set()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(stored_dtype(model) if id(parameter) in outside else dtype)


def _untie_adapted(base: PreTrainedModel) -> None:
    """Give a tied head its own weight if LoRA changes the head or the embedding."""
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    if not is_tied(base) or not (isinstance(embedding, BaseTunerLayer) or isinstance(head, BaseTunerLayer)):
        return
    plain = head.get_base_layer() if isinstance(head, BaseTunerLayer) else head
    plain.weight = nn.Parameter(plain.weight.detach().clone(), requires_grad=False)
    base.config.get_text_config().tie_word_embeddings = base.config.tie_word_embeddings = False
