"""A model and its tokenizer, loaded to answer: on the best device, in a type that this machine computes well in."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..precision import best_precision
from .loading import load_model, load_tokenizer


def load_to_answer(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model by name to get answers from it.

    Args:
        name: As for ``load_model``.

    Returns:
        The model in the type its weights are stored in (float32 where bf16 would be slow), on the accelerator if there
        is one; and its tokenizer.

    Raises:
        ModelError: As ``load_model`` and ``load_tokenizer`` raise it.
    """
    tokenizer = load_tokenizer(name)
    model = load_model(name, dtype="auto" if best_precision().name == "bf16" else torch.float32)
    if torch.accelerator.is_available():
        model = model.to(torch.accelerator.current_accelerator())
    return model, tokenizer
