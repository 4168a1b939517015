"""Answers from a model: batched, padded on the left, for held-out prompts before, while and after training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from ..data.tokens.rendering import Renderer

# What tokenizers say that know no limit is far above any.
NO_LIMIT_TOKENS = 10**8


class Reply(NamedTuple):
    """One answer.

    Args:
        text: Without special tokens and blanks around it.
        tokens: How many were computed, without the one that ends the answer.
        is_finished: Whether the model ended it; otherwise it was cut.
    """

    text: str
    tokens: int
    is_finished: bool


def answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]], **options: Any
) -> list[str]:
    """The texts of :func:`replies`, which takes the same arguments."""
    return [reply.text for reply in replies(model, tokenizer, prompts, **options)]


@torch.no_grad()
def replies(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int = 32,
    on_batch: Callable[[int], None] | None = None,
) -> list[Reply]:
    """The model's answers, shortest prompts first.

    Args:
        model: A causal or encoder-decoder model.
        tokenizer: Its tokenizer.
        prompts: Token ids of each prompt, as the chat template renders them with the generation prompt.
        max_new_tokens: Where an answer is cut that does not end by itself.
        temperature: 0 takes the likeliest token each time.
        seed: Of the sampling; the same prompts in batches of the same size get the same answers.
        batch_size: Prompts answered at once.
        on_batch: Called with the number of answers done so far.

    Returns:
        One a prompt, in their order.
    """
    was_training = model.training
    model.eval()
    found = [Reply("", 0, False)] * len(prompts)
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    ends = end_tokens(model, tokenizer)
    drawing: dict[str, Any] = {"do_sample": temperature > 0} | ({"temperature": temperature} if temperature > 0 else {})
    if temperature > 0:
        set_seed(seed)
    for start in range(0, len(by_length), batch_size):
        chunk = by_length[start : start + batch_size]
        width = max(len(prompts[i]) for i in chunk)
        ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(prompts[i])) + list(prompts[i]) for i in chunk])
        mask = torch.tensor([[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in chunk])
        output = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=ends,
            use_cache=True,
            **drawing,
        )
        new = output[:, 1:] if model.config.is_encoder_decoder else output[:, width:]
        for i, row in zip(chunk, new.tolist(), strict=True):
            found[i] = _reply(row, ends, tokenizer)
        if on_batch:
            on_batch(start + len(chunk))
    model.train(was_training)
    return found


def _reply(row: list[int], ends: list[int], tokenizer: PreTrainedTokenizerBase) -> Reply:
    length = next((position for position, token in enumerate(row) if token in ends), len(row))
    text = tokenizer.decode(row[:length], skip_special_tokens=True)
    return Reply(text.strip(), length, length < len(row))


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end an answer: the tokenizer's, its chat template's end of turn, and the generation settings'."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    ends = list(ends) if isinstance(ends, list) else [ends]
    if tokenizer.chat_template is not None and (end_of_turn := Renderer(tokenizer).end_of_turn) is not None:
        ends.append(tokenizer.convert_tokens_to_ids(end_of_turn))
    return sorted({token for token in (*ends, tokenizer.eos_token_id) if token is not None})


def context_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Most tokens of prompt and answer together; ``None`` where neither model nor tokenizer states a limit."""
    stated = (getattr(model.config.get_text_config(), "max_position_embeddings", None), tokenizer.model_max_length)
    limits = [limit for limit in stated if limit and limit < NO_LIMIT_TOKENS]
    return min(limits) if limits else None
