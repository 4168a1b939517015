"""Find out how many token ids and positions a model has rows for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..data.limits import ModelLimits
from ..errors import ConfigError, ModelError

# A table of positions, by the last part of its path. Other models compute positions (rotary, relative, ALiBi).
_POSITIONS = re.compile(r"(^|\.)(wpe|embed_positions|position_embeddings?|positions_embed|pos_encoding)$")


def limits_of(model: Any) -> ModelLimits:
    """Return how much a transformers model can read, wrapped by PEFT or not."""
    return ModelLimits(embedding_rows(model), position_rows(model))


def require_pad_token(
    limits: ModelLimits, tokenizer: PreTrainedTokenizerBase, padding_value: int | None = None
) -> None:
    """Refuse a token to pad with that the model has no embedding for.

    Batches are padded with ``padding_value`` where it is given, and prompts to generate from with the tokenizer's; a
    model that names a pad token beyond its embeddings cannot be loaded again.
    """
    has = f"the model has {limits.embeddings:,} embeddings (ids 0 to {limits.embeddings - 1})"
    if padding_value is not None and not 0 <= padding_value < limits.embeddings:
        raise ConfigError(f"padding_value is {padding_value}, but {has}; leave it out, or name one of them")
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id >= limits.embeddings:
        raise ModelError(
            f"the pad token {tokenizer.pad_token!r} has the id {tokenizer.pad_token_id}, but {has}; pad with a token"
            f" that has one, such as {tokenizer.eos_token!r} (tokenizer.pad_token, or pad_token in"
            f" tokenizer_config.json), or add rows: model.resize_token_embeddings({len(tokenizer)})"
        )


def embedding_rows(model: Any) -> int:
    """Return how many token ids a transformers model has an input embedding for, wrapped by PEFT or not."""
    embedding = model.get_input_embeddings()
    return int(getattr(embedding, "num_embeddings", None) or embedding.weight.shape[0])


def measured_ids(model: Any) -> int:
    """Return N, up to 64, so that the ids 3 to 3 + N exist: for rows of which only the time or the memory counts.

    A model of letters or amino acids has some 30.
    """
    return max(1, min(64, embedding_rows(model) - 4))


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
