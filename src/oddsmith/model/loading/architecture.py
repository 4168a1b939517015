"""Find the class of transformers that computes a checkpoint's text, beside images or sound or without.

The class that the checkpoint names decides (``architectures`` in config.json): the same settings may describe a model
with a vision tower and its text part alone, and only the one that was saved has all its weights.
"""

from __future__ import annotations

import inspect
from typing import Any

from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
    PreTrainedConfig,
)

from ...errors import ModelError

# Where a checkpoint names none of their classes, the first one that knows its settings is taken.
_DECODERS = (AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM)
_ENCODER_DECODERS = (AutoModelForSeq2SeqLM, AutoModelForImageTextToText, AutoModelForMultimodalLM)
# Weights without a language-modelling head, by the end of their architecture's name.
_HEADLESS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice")
_NEEDED = "ORPO needs a model that generates text"
# Why a model type cannot be trained on text alone, where its forward pass does not say so by its arguments.
_THINKER = "its thinker alone has a forward pass for training; load that with {} and save it as a model of its own"
_READS_IMAGES = "it reads images in place of a prompt"
_NEEDS_IMAGES = "it needs an image with every text"
_NEEDS_SOUND = "it needs sound with every text"
_NOT_FOR_TEXT = {
    "diffusion_gemma": "it writes blocks of text by diffusion, so log p(token | tokens before it) is not defined",
    "evolla": "it needs a protein with every text",
    "idefics": _NEEDS_IMAGES,
    "kosmos-2": _NEEDS_IMAGES,
    "kyutai_speech_to_text": _NEEDS_SOUND,
    "pix2struct": _READS_IMAGES,
    "pp_formulanet": _READS_IMAGES,
    "qwen2_5_omni": _THINKER.format("Qwen2_5OmniThinkerForConditionalGeneration"),
    "qwen3_omni_moe": _THINKER.format("Qwen3OmniMoeThinkerForConditionalGeneration"),
    "udop": "it needs the place of every token on a page",
    "vision-encoder-decoder": _READS_IMAGES,
    "voxtral_realtime": _NEEDS_SOUND,
}


def auto_class_of(config: PreTrainedConfig) -> Any | None:
    """Return the auto class that makes a model of these settings; ``None`` where transformers has none for text."""
    candidates = _ENCODER_DECODERS if config.is_encoder_decoder else _DECODERS
    known = [auto_class for auto_class in candidates if type(config) in auto_class._model_mapping]
    for auto_class in known:
        if _names(auto_class, config) & set(config.architectures or ()):
            return auto_class
    # Without a name: the one with every part that the settings describe.
    whole = [auto_class for auto_class in known if auto_class is not candidates[0]]
    return (whole or known or [None])[0]


def auto_class_for(name: str, config: PreTrainedConfig) -> Any:
    """Return the auto class of a checkpoint of this name; ``ModelError`` where it does not give log p(answer | prompt).

    That are encoders, classifiers, and models that need more than text.
    """
    architectures = config.architectures or []
    if architectures and all(architecture.endswith(_HEADLESS) for architecture in architectures):
        raise ModelError(f"{name}: is a classifier ({', '.join(architectures)}); {_NEEDED}")
    auto_class = auto_class_of(config)
    own_code = getattr(config, "auto_map", None) or {}
    is_encoder = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not config.is_encoder_decoder
    if is_encoder and not getattr(config, "is_decoder", False):
        raise ModelError(f"{name}: is an encoder ({config.model_type}); {_NEEDED}, such as Llama, Qwen or T5")
    for candidate in _ENCODER_DECODERS if config.is_encoder_decoder else _DECODERS:
        if candidate.__name__ in own_code and (auto_class is None or candidate is auto_class):
            return candidate
    if reason := _not_for_text(config, auto_class):
        raise ModelError(f"{name}: {config.model_type} cannot be trained on pairs of text: {reason}")
    if auto_class is None:
        raise ModelError(
            f"{name}: transformers has no text generation for its model type {config.model_type!r}; {_NEEDED}"
        )
    return auto_class


def multimodal_class(model: Any) -> str:
    """Return the name of the auto class that loads a model beside images or sound; "" for models of text alone."""
    auto_class = auto_class_of(model.config)
    return auto_class.__name__ if auto_class in (AutoModelForImageTextToText, AutoModelForMultimodalLM) else ""


def _names(auto_class: Any, config: PreTrainedConfig) -> set[str]:
    classes = auto_class._model_mapping[type(config)]
    return {one.__name__ for one in (classes if isinstance(classes, tuple) else (classes,))}


def _not_for_text(config: PreTrainedConfig, auto_class: Any | None) -> str | None:
    """Return what else than text a model needs, or gives."""
    if config.model_type in _NOT_FOR_TEXT:
        return _NOT_FOR_TEXT[config.model_type]
    if auto_class is None:
        return "it writes down speech" if type(config) in AutoModelForSpeechSeq2Seq._model_mapping else None
    classes = auto_class._model_mapping[type(config)]
    model_class = classes[0] if isinstance(classes, tuple) else classes
    arguments = inspect.signature(model_class.forward).parameters.values()
    needed = [one.name for one in arguments if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD]
    others = [name for name in needed if name not in ("self", "input_ids")]
    return f"its forward pass needs {' and '.join(others)}" if others else None
