"""Find out how a model changes its logits after the output layer: by a scale, a soft cap, or in an unknown way.

For z = head(hidden):   logits = cap * tanh(scale * z / cap),   or without a cap   logits = scale * z
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


def _by_model_type(**model_types_of_setting: str) -> dict[str, str]:
    return {kind: setting for setting, kinds in model_types_of_setting.items() for kind in kinds.split()}


# The setting by which the ``forward`` of a transformers model type multiplies, divides or caps after the head.
_MULTIPLIED = _by_model_type(
    logit_scale="cohere cohere2 cohere2_moe cohere_compass cohere_compass_text",
    lm_head_multiplier="falcon_h1",
    logits_scaling="hyperclovax hyperclovax_vision_v2",
    output_multiplier="muse_glimmer muse_spark",
)
_DIVIDED = _by_model_type(
    logits_scaling="granite granite4_vision granite_docling granite_swa granitemoe granitemoe_swa granitemoehybrid"
    " granitemoeshared"
)
_CAPPED = _by_model_type(
    final_logit_softcapping="beam gemma2 gemma3_text gemma3n gemma3n_text gemma4 gemma4_text gemma4_unified"
    " gemma4_unified_text mistral_large4 muse_glimmer muse_spark nanochat paligemma vaultgemma",
    logits_soft_cap="recurrent_gemma",
    output_logit_soft_cap="xlstm",
)
# Here the setting has no effect after the head: it scales hidden states before it, or is the text part's alone.
_WITHOUT_EFFECT = _by_model_type(
    logits_scaling="minicpm3",
    logit_scale="aya_vision cohere2_vision",
    final_logit_softcapping="gemma3 shieldgemma2",
)
# These mask, cut or select their logits.
_UNKNOWN = (
    *("chameleon", "gemma4_assistant", "gemma4_unified_assistant", "inkling_mm_model", "inkling_text"),
    *("musicgen", "musicgen_melody"),
)
# Where one of these is set in a model that is not named above, something unknown follows the head.
_INDICATORS = {*_MULTIPLIED.values(), *_DIVIDED.values(), *_CAPPED.values(), "output_multiplier", "unpadded_vocab_size"}


class OutputTransform(NamedTuple):
    """An elementwise change of logits after the output layer: the factor ``scale``, then the bound ``soft_cap``."""

    scale: float = 1.0
    soft_cap: float | None = None

    def apply(self, logits: Tensor) -> Tensor:
        """Return the model's logits from its head's output, any shape and floating dtype, as a new tensor."""
        scaled = logits * self.scale
        return scaled if self.soft_cap is None else torch.tanh(scaled / self.soft_cap) * self.soft_cap

    def apply_(self, logits: Tensor) -> Tensor:
        """Do the same in place, for a tensor that no gradient goes through."""
        if self.scale != 1:
            logits.mul_(self.scale)
        return logits if self.soft_cap is None else logits.div_(self.soft_cap).tanh_().mul_(self.soft_cap)


def output_transform(config: Any) -> OutputTransform | None:
    """Return how a model with this transformers configuration changes its logits after the head.

    Return ``None`` where it does, or may do, something else; its own logits have to be used then. The causal models of
    transformers 5.23 are covered. Any other model is taken to change nothing if its configuration sets none of the
    settings that indicate otherwise; the self-check compares with the model's own logits.
    """
    kind = config.model_type
    if config.is_encoder_decoder or kind in _UNKNOWN:
        return None  # encoder-decoders: many add a bias that is no setting but a weight
    settings = config.get_text_config()
    known = {table[kind] for table in (_MULTIPLIED, _DIVIDED, _CAPPED, _WITHOUT_EFFECT) if kind in table}
    if any(getattr(settings, name, None) not in (None, 1) for name in _INDICATORS - known):
        return None

    def value(table: dict[str, str]) -> float | None:
        return getattr(settings, table[kind], None) if kind in table else None

    scale = (value(_MULTIPLIED) or 1.0) / (value(_DIVIDED) or 1.0)
    return OutputTransform(scale, value(_CAPPED))
