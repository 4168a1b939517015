"""What a model does to its logits after the output layer: a scale, a soft cap, or something this package does not know.

    logits = cap * tanh(scale * z / cap)        z = head(hidden);  without a cap: logits = scale * z

Shape suffixes: V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

# Model types of transformers whose ``forward`` multiplies or divides after the head, and the setting it takes.
_MULTIPLIED = {
    "cohere": "logit_scale",
    "cohere2": "logit_scale",
    "cohere2_moe": "logit_scale",
    "cohere_compass_text": "logit_scale",
    "falcon_h1": "lm_head_multiplier",
    "hyperclovax": "logits_scaling",
}
_DIVIDED = dict.fromkeys(
    ("granite", "granite_swa", "granitemoe", "granitemoe_swa", "granitemoehybrid", "granitemoeshared"),
    "logits_scaling",
)
_CAPPED = {
    **dict.fromkeys(
        (
            "beam",
            "gemma2",
            "gemma3_text",
            "gemma3n",
            "gemma3n_text",
            "gemma4",
            "gemma4_text",
            "gemma4_unified",
            "gemma4_unified_text",
            "nanochat",
            "vaultgemma",
        ),
        "final_logit_softcapping",
    ),
    "recurrent_gemma": "logits_soft_cap",
    "xlstm": "output_logit_soft_cap",
}
# They scale the hidden states before the head, so that the setting has had its effect already.
_BEFORE_THE_HEAD = {"minicpm3": "logits_scaling"}
# They mask, cut or choose among their logits.
_OTHERWISE = {
    "chameleon",
    "gemma4_assistant",
    "gemma4_unified_assistant",
    "inkling_text",
    "musicgen",
    "musicgen_melody",
}
# Where one of these is set in a model that is not named above, something follows the head that is not known here.
_TELLING = {
    *_MULTIPLIED.values(),
    *_DIVIDED.values(),
    *_CAPPED.values(),
    "output_multiplier",
    "unpadded_vocab_size",
}


class OutputTransform(NamedTuple):
    """What follows the output layer, elementwise: first the scale, then the cap.

    Args:
        scale: Factor of every logit.
        soft_cap: Bound of every logit's magnitude, ``None`` for no bound.
    """

    scale: float = 1.0
    soft_cap: float | None = None

    def apply(self, logits: Tensor) -> Tensor:
        """The model's logits from its head's output, any shape and floating dtype, as a new tensor."""
        scaled = logits * self.scale
        return scaled if self.soft_cap is None else torch.tanh(scaled / self.soft_cap) * self.soft_cap

    def apply_(self, logits: Tensor) -> Tensor:
        """The same in place, for a tensor that no gradient goes through."""
        if self.scale != 1:
            logits.mul_(self.scale)
        return logits if self.soft_cap is None else logits.div_(self.soft_cap).tanh_().mul_(self.soft_cap)


def output_transform(config: Any) -> OutputTransform | None:
    """What a model does to its logits after the head, by its configuration.

    Known are the causal models of transformers 5.23. A model that is not among them and whose configuration sets
    nothing telling counts as doing nothing; whoever relies on that compares with the model's own logits once.

    Args:
        config: A transformers configuration.

    Returns:
        The transform; ``None`` where the model does something else, or may: its own logits have to be used.
    """
    kind = config.model_type
    if config.is_encoder_decoder or kind in _OTHERWISE:
        return None  # encoder-decoders: many add a bias that is no setting but a weight
    settings = config.get_text_config()
    known = {table[kind] for table in (_MULTIPLIED, _DIVIDED, _CAPPED, _BEFORE_THE_HEAD) if kind in table}
    if any(getattr(settings, name, None) not in (None, 1) for name in _TELLING - known):
        return None

    def value(table: dict[str, str]) -> float | None:
        return getattr(settings, table[kind]) if kind in table else None

    scale = (value(_MULTIPLIED) or 1.0) / (value(_DIVIDED) or 1.0)
    return OutputTransform(scale, value(_CAPPED))
