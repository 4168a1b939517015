"""Build a model without its weights: names, shapes and types, to know its size before anything is loaded."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, PreTrainedTokenizerBase

from ...data.limits import ModelLimits
from ..adapter_bounds import require_bounded_adapter
from ..adapters import add_adapter
from ..limits import limits_of, require_pad_token
from ..logprobs.small_copy import shorten
from ..text_part import freeze_outside_text
from ..vocabulary import rows_of_adapter
from .adapter_base import find_base
from .architecture import auto_class_of
from .chat_template import new_tokens
from .gguf import load_gguf_config
from .load_errors import clear_errors
from .place import MODEL_SETTINGS, is_adapter_folder, is_gguf, locate
from .plausible import require_plausible_settings, require_plausible_size


def outline_model(
    name: str, *, dtype: torch.dtype | str, peft_config: PeftConfig | None = None, layers: int | None = None
) -> nn.Module | None:
    """Build a model as it would be trained, on torch's device ``meta``; arguments are those of ``load_model``.

    ``peft_config`` is the adapter that will be trained on it; with ``layers`` only so many of the first are built.
    Nothing is fetched and no code of a model is run: return ``None`` where the model is not on this disk, or needs its
    own code.
    """
    place = locate(name)
    with clear_errors(name, "main"):
        return _outlined(name, place, dtype, peft_config, layers)


def _outlined(
    name: str, place: str, dtype: torch.dtype | str, peft_config: PeftConfig | None, layers: int | None
) -> nn.Module | None:
    if is_adapter_folder(Path(place)):
        found = find_base(name)
        base = outline_model(found[0], dtype=dtype, layers=layers) if found else None
        return None if base is None else _with_adapter(base, PeftConfig.from_pretrained(place), is_new=False)
    if is_gguf(place):
        config = load_gguf_config(Path(place))
    else:
        if Path(place).is_dir():
            require_plausible_settings(name, Path(place) / MODEL_SETTINGS)
        try:
            config = AutoConfig.from_pretrained(place, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError):
            return None
    auto_class = auto_class_of(config)
    if auto_class is None:
        return None
    if dtype == "auto":
        dtype = getattr(config, "dtype", None) or torch.float32
    require_plausible_size(name, Path(place), config, auto_class)
    if layers is not None:
        shorten(config.get_text_config(), layers)
    with torch.device("meta"):
        model = auto_class.from_config(config, dtype=dtype)
    freeze_outside_text(model)
    return model if peft_config is None else _with_adapter(model, peft_config, is_new=True)


def outlined_limits(
    name: str, tokenizer: PreTrainedTokenizerBase, padding_value: int | None = None
) -> ModelLimits | None:
    """Return how much a model can read, after :func:`limits.require_pad_token`; ``None`` as of ``outline_model``.

    Its embeddings are as large as a chat template of the settings makes them.
    """
    outline = outline_model(name, dtype="auto")
    if outline is None:
        return None
    limits = limits_of(outline)
    new = [tokenizer.convert_tokens_to_ids(token) for token in new_tokens(tokenizer)]
    if any(token >= limits.embeddings for token in new):
        limits = limits._replace(embeddings=len(tokenizer))
    require_pad_token(limits, tokenizer, padding_value)
    return limits


def _with_adapter(model: Any, peft_config: PeftConfig, *, is_new: bool) -> nn.Module:
    """Add the adapter's shapes. Initialisations such as PiSSA are left out: they need weights and change no shape."""
    peft_config = copy.deepcopy(peft_config)
    require_bounded_adapter("the adapter", peft_config, model)
    peft_config.init_lora_weights = False
    with torch.device("meta"):
        if is_new:
            return add_adapter(model, peft_config)
        peft_config.inference_mode = False
        if rows_of_adapter(peft_config) > model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(rows_of_adapter(peft_config), mean_resizing=False)
        return get_peft_model(model, peft_config)
