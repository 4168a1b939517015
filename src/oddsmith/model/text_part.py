"""Find what text reaches in a model that reads images or sound as well; towers and projectors stay as they are.

    Qwen3VLForConditionalGeneration
        model.visual                  outside
        model.language_model          text: its decoder
            .layers.3.cross_attn      outside, if there are such layers (Llama 3.2 Vision)
        lm_head                       text: its head

Pairs of text give no gradient to what is outside. It is not trained, gets no adapter, and is saved as it was loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_MULTIMODAL_LM_MAPPING

# Modules for images and sound inside of a decoder, by their own names or their classes'.
_NAMES = re.compile(
    r"^(vision|visual|image|img|audio|speech|video)|_(vision|visual|image|audio)$|^embed_tokens_extend$"
)
_CLASSES = re.compile(r"CrossAttentionDecoderLayer$")


def is_multimodal(model: Any) -> bool:
    """Return whether a transformers model, wrapped by PEFT or not, may have parts for images or sound."""
    config = getattr(model, "config", None)
    if type(config) in MODEL_FOR_MULTIMODAL_LM_MAPPING:
        return True
    return any(getattr(config, name, None) is not None for name in ("vision_config", "audio_config"))


def outside_text(model: Any) -> list[str]:
    """Return paths of the modules and parameters of a model that text does not reach; of nested ones the outermost.

    ``model`` is a transformers model without an adapter. There are none in a model of text alone.
    """
    return list(_outside(model, _text_modules(model))) if is_multimodal(model) else []


def outside_parameters(model: Any) -> list[tuple[str, nn.Parameter]]:
    """Return the parameters outside of the text part by name, also of a model wrapped by PEFT."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    paths = outside_text(base)
    if not paths:
        return []
    is_outside = re.compile(pattern_of(paths))
    named = list(base.named_parameters(remove_duplicate=False))
    shared = {id(weight) for name, weight in named if not is_outside.fullmatch(name)}
    return [(name, weight) for name, weight in named if id(weight) not in shared]


def freeze_outside_text(model: nn.Module) -> list[nn.Parameter]:
    """Freeze what text does not reach, and return the parameters that were trainable."""
    frozen = [weight for _, weight in outside_parameters(model) if weight.requires_grad]
    for weight in frozen:
        weight.requires_grad_(False)
    return frozen


def as_stored(model: Any, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights of a model to save, with what text does not reach in the type of the checkpoint it is from."""
    dtype = stored_dtype(model)
    outside = {name for name, _ in outside_parameters(model)} if dtype else set()
    return {name: weight.to(dtype) if name in outside else weight for name, weight in weights.items()}


def stored_dtype(model: Any) -> torch.dtype | None:
    """Return the type of the weights in the files that a model was loaded from, where ``load_model`` did it."""
    found = getattr(model, "stored_dtype", None)
    return found if isinstance(found, torch.dtype) else None


def pattern_of(paths: list[str]) -> str:
    """Return a regular expression for these paths and all below them, with one expression for all layers of a list."""
    kinds = dict.fromkeys(re.sub(r"(?<=\\\.)\d+(?=\\\.)", r"\\d+", re.escape(path)) for path in paths)
    return rf"(?:{'|'.join(kinds)})(?:\..+)?"


def _text_modules(model: Any) -> list[nn.Module]:
    decoder = model.get_decoder()
    encoder = model.get_encoder().get_decoder() if model.config.is_encoder_decoder else None
    found = (decoder, encoder, model.get_input_embeddings(), model.get_output_embeddings())
    return [module for module in found if module is not None]


def _outside(module: nn.Module, text: list[nn.Module], path: str = "") -> Iterator[str]:
    """Yield the outermost paths below a module that lead to no text module, or away from one."""
    is_text = any(module is one for one in text)
    for name, child in module.named_children():
        if not any(True for _ in child.parameters()):
            continue
        below = f"{path}.{name}" if path else name
        if is_text:
            if _NAMES.search(name) or _CLASSES.search(type(child).__name__):
                yield below
            else:
                yield from _outside(child, [child], below)
        elif any(child is one for one in text) or {id(one) for one in child.modules()} & {id(one) for one in text}:
            yield from _outside(child, text, below)
        else:
            yield below
    if not is_text:
        yield from (f"{path}.{name}" if path else name for name, _ in module.named_parameters(recurse=False))
