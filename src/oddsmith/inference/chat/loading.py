"""From a model's name to someone who answers: in the type and bits it was trained in, on the best device."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...export.finished import find_finished, quantization_config
from ...model.loading.models import load_model, load_tokenizer
from ...model.loading.place import is_gguf, locate
from ...system.precision import best_precision
from .folder_speaker import FolderSpeaker
from .gguf_speaker import GgufSpeaker
from .speaker import Speaker


def open_speaker(name: str) -> Speaker:
    """Load a model to talk to.

    Args:
        name: A run, a model folder, an adapter, a hub id, ``builtin:...``, or a GGUF file, which llama.cpp runs.

    Returns:
        The speaker.

    Raises:
        ModelError: Nothing is there, or it does not generate text.
        MissingExtraError: A GGUF file or a base in 4 bits, and its extra is not installed.
    """
    place = locate(name)
    return GgufSpeaker(name, place) if is_gguf(place) else FolderSpeaker(name, *load_to_answer(name))


def load_to_answer(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model by name to get answers from it.

    Args:
        name: As for ``load_model``.

    Returns:
        The model and its tokenizer. An adapter stands on its base in the bits it was trained on: on others it is
        another function. Weights are in the type they are stored in (float32 where bf16 would be slow), on the
        accelerator if there is one.

    Raises:
        ModelError: As ``load_model`` and ``load_tokenizer`` raise it.
        MissingExtraError: The base was in 4 or 8 bits, and bitsandbytes is not installed.
    """
    quantization = quantization_config(find_finished(name))
    dtype = "auto" if best_precision().name == "bf16" else torch.float32
    tokenizer = load_tokenizer(name)
    model = load_model(name, dtype=dtype, quantization_config=quantization)
    if quantization is None and torch.accelerator.is_available():
        model = model.to(torch.accelerator.current_accelerator())
    return model, tokenizer
