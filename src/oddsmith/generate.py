"""Answers from a model: batched, padded on the left, for held-out prompts before, while and after training."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase


@torch.no_grad()
def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 128,
    batch_size: int = 32,
    on_batch: Callable[[int], None] | None = None,
) -> list[str]:
    """The model's greedy answers.

    Args:
        model: A causal or encoder-decoder model.
        tokenizer: Its tokenizer.
        prompts: Token ids of each prompt, as the chat template renders them with the generation prompt.
        max_new_tokens: Where an answer is cut that does not end by itself.
        batch_size: Prompts answered at once.
        on_batch: Called with the number of answers done so far.

    Returns:
        One text a prompt, without special tokens.
    """
    was_training = model.training
    model.eval()
    answers = [""] * len(prompts)
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(by_length), batch_size):
        chunk = by_length[start : start + batch_size]
        width = max(len(prompts[i]) for i in chunk)
        ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(prompts[i])) + list(prompts[i]) for i in chunk])
        mask = torch.tensor([[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in chunk])
        output = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=_end_tokens(model, tokenizer),
            use_cache=True,
        )
        new = output if model.config.is_encoder_decoder else output[:, width:]
        for i, text in zip(chunk, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
            answers[i] = text.strip()
        if on_batch:
            on_batch(start + len(chunk))
    model.train(was_training)
    return answers


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end an answer: the tokenizer's and those of the model's generation settings."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    ends = ends if isinstance(ends, list) else [ends]
    return sorted({token for token in (*ends, tokenizer.eos_token_id) if token is not None})
