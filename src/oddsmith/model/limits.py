"""How many token ids and positions a model has rows for; a larger one ends in an IndexError, or on a GPU in worse."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

# A table of positions, by the last part of its path. Other models compute positions (rotary, relative, ALiBi).
_POSITIONS = re.compile(r"(^|\.)(wpe|embed_positions|position_embeddings?|positions_embed|pos_encoding)$")


def embedding_rows(model: Any) -> int:
    """Return how many token ids a transformers model has an input embedding for, wrapped by PEFT or not."""
    embedding = model.get_input_embeddings()
    return int(getattr(embedding, "num_embeddings", None) or embedding.weight.shape[0])


def position_rows(model: Any) -> int | None:
    """Return how many tokens a sequence may have; ``None`` where the model has no table of positions.

    Virtual tokens that an adapter puts in front of every sequence are taken off.
    """
    stated = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(stated, int):
        return None
    # An image encoder has a table of its own; the one of tokens is as long as stated, or a few offset rows longer.
    usable = [rows - offset for rows, offset in _tables(model) if stated <= rows <= stated + 4]
    if not usable:
        return None
    adapters = getattr(model, "peft_config", {}).values()
    virtual = sum(peft.num_virtual_tokens for peft in adapters if getattr(peft, "is_prompt_learning", False))
    return min(usable) - virtual


def _tables(model: nn.Module) -> Iterator[tuple[int, int]]:
    """Yield rows and offset of every table of positions: position p is in row p + offset."""
    for path, module in model.named_modules():
        if isinstance(module, nn.Embedding) and _POSITIONS.search(path):
            offset = getattr(module, "offset", 0)  # of OPT, BART, BioGPT
            if path.endswith("position_embeddings") and module.padding_idx is not None:  # of RoBERTa
                offset = module.padding_idx + 1
            yield module.num_embeddings, offset
        for name, value in (*module.named_buffers(recurse=False), *vars(module).items()):
            if isinstance(value, Tensor) and value.ndim == 2 and _POSITIONS.search(name):
                yield len(value), 0
