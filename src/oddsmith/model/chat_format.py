"""``setup_chat_format``, which TRL had before 1.0 and many scripts call: ChatML for a base model."""

from __future__ import annotations

import math
from typing import TypeVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import ConfigError
from .limits import embedding_rows
from .loading.chat_template import BUILTIN, set_chat_template
from .vocabulary import grow_embeddings

Model = TypeVar("Model", bound=PreTrainedModel)
Tokenizer = TypeVar("Tokenizer", bound=PreTrainedTokenizerBase)


def setup_chat_format(
    model: Model, tokenizer: Tokenizer, format: str = "chatml", resize_to_multiple_of: int | None = None
) -> tuple[Model, Tokenizer]:
    """Give a base model a built-in chat template, the tokens that it writes, and rows for them in the embeddings.

    Arguments and result are those of TRL's function; the setting ``chat_template`` does the same without it. New rows
    start at the mean of the others, and so are the same where a script calls it again to merge an adapter.

    Args:
        model: The model, changed in place.
        tokenizer: Its tokenizer, changed in place, without a chat template.
        format: ``"chatml"``.
        resize_to_multiple_of: The number of rows becomes a multiple of this.

    Returns:
        Both.

    Raises:
        ConfigError: The format is unknown, or the tokenizer has a chat template.
    """
    if format not in BUILTIN:
        raise ConfigError(f"setup_chat_format: format is {format!r}; expected {' or '.join(BUILTIN)}")
    if tokenizer.chat_template is not None:
        raise ConfigError(
            "setup_chat_format is for a tokenizer without a chat template, and this one has its own; leave the call"
            " out, or set tokenizer.chat_template = None before"
        )
    set_chat_template(tokenizer, format, is_main=False)
    tokenizer.pad_token = tokenizer.eos_token
    multiple = resize_to_multiple_of or 1
    grow_embeddings(model, math.ceil(max(embedding_rows(model), len(tokenizer)) / multiple) * multiple)
    for settings in (model.config, getattr(model, "generation_config", None)):
        if settings is not None:
            settings.bos_token_id, settings.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
            settings.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer
