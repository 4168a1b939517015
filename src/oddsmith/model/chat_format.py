"""``setup_chat_format``, which TRL had before 1.0 and many scripts call: ChatML for a base model."""

from __future__ import annotations

from typing import TypeVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import ConfigError

Model = TypeVar("Model", bound=PreTrainedModel)
Tokenizer = TypeVar("Tokenizer", bound=PreTrainedTokenizerBase)

START, END = "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def setup_chat_format(
    model: Model, tokenizer: Tokenizer, format: str = "chatml", resize_to_multiple_of: int | None = None
) -> tuple[Model, Tokenizer]:
    """Give a base model ChatML: its chat template, its two tokens, and rows for them in the embeddings.

    Arguments and result are those of TRL's function. New rows start at the mean of the others, and are the same each
    time, so that a script may call it once to train an adapter and once more to merge it.

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
    if format != "chatml":
        raise ConfigError(f"setup_chat_format: format is {format!r}; expected chatml")
    if tokenizer.chat_template is not None:
        raise ConfigError(
            "setup_chat_format is for a tokenizer without a chat template, and this one has its own; leave the call"
            " out, or set tokenizer.chat_template = None before"
        )
    tokenizer.add_special_tokens({"bos_token": START, "eos_token": END, "pad_token": END})
    tokenizer.chat_template = CHATML
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows or resize_to_multiple_of:
        with torch.random.fork_rng():
            torch.manual_seed(0)  # transformers draws the rows around the mean
            model.resize_token_embeddings(max(rows, len(tokenizer)), pad_to_multiple_of=resize_to_multiple_of)
    for settings in (model.config, getattr(model, "generation_config", None)):
        if settings is not None:
            settings.bos_token_id, settings.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
            settings.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer
