"""Which path a run takes, and how long its micro-batches may be: asked of the model itself, once, said in a line."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..batching.collate import PairCollator
from ..batching.forest import forest_batch
from ..config import ORPOConfig
from .attention import forest_attention_in
from .forest_logps import forest_logps
from .memory import token_budget
from .output_transform import OutputTransform
from .paths import ForestPath, PaddedPath
from .self_check import Verdict, check_forest

logger = logging.getLogger(__name__)


def choose_path(
    model: nn.Module,
    args: ORPOConfig,
    tokenizer: PreTrainedTokenizerBase,
    collator: Any,
    *,
    pad_token_id: int,
    precision: Callable[[], AbstractContextManager],
) -> ForestPath | PaddedPath:
    """The packed path wherever it is exact, with a budget of tokens for its micro-batches; padded batches otherwise.

    Args:
        model: The model as it will be trained, not wrapped yet.
        args: Settings.
        tokenizer: The model's.
        collator: The data collator of the run; one that is not ours asks for padded batches.
        pad_token_id: As in ``pair_logps``.
        precision: The context the training computes in (autocast).

    Returns:
        The path, whose ``reason`` has been logged.
    """
    verdict = _verdict(model, args, tokenizer, collator, pad_token_id, precision)
    config: Any = model.config
    transform = verdict.transform
    if transform is None:
        logger.warning("Training on padded batches, which is slower: %s.", verdict.reason)
        router_loss = bool(getattr(config, "output_router_logits", False))
        return PaddedPath(
            collator, pad_token_id, args.nll_on, bool(config.is_encoder_decoder), router_loss, verdict.reason
        )
    path = ForestPath(args.nll_on, transform, verdict.reason)
    if isinstance(args.max_tokens_per_microbatch, str):  # "auto"
        budget = token_budget(model, lambda tokens: _one_forward(model, tokens, transform, precision))
        path.max_tokens, path.reason = budget.max_tokens, f"{verdict.reason}; {budget}"
    else:
        path.max_tokens = args.max_tokens_per_microbatch
    logger.info("Training on prefix forests: %s.", path.reason)
    return path


def _verdict(
    model: nn.Module,
    args: ORPOConfig,
    tokenizer: PreTrainedTokenizerBase,
    collator: Any,
    pad_token_id: int,
    precision: Callable[[], AbstractContextManager],
) -> Verdict:
    if not args.prefix_forest:
        return Verdict(False, "prefix_forest is off")
    if type(collator) is not PairCollator:
        return Verdict(False, f"{type(collator).__name__} makes them")
    return check_forest(model, tokenizer, pad_token_id=pad_token_id, precision=precision)


def _one_forward(
    model: nn.Module, tokens: int, transform: OutputTransform, precision: Callable[[], AbstractContextManager]
) -> torch.Tensor:
    """A loss over a packed row of one pair, the first half of it prompt, as in a training step."""
    ids = np.arange(tokens) % 64 + 3
    prompt, third = tokens // 2, tokens // 4
    row = {
        "chosen_input_ids": ids[: prompt + third],
        "rejected_input_ids": np.concatenate([ids[:prompt], ids[prompt + third :] + 1]),
        "chosen_prompt_tokens": prompt,
        "rejected_prompt_tokens": prompt,
        "chosen_end": prompt + third,
        "rejected_end": tokens - third,
    }
    batch = forest_batch([row], "sequence")
    device = next(model.parameters()).device
    batch = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
    was_training = model.training
    model.train()
    try:
        with precision(), forest_attention_in(model):
            logps = forest_logps(model, batch, transform=transform)
            return logps.nll_sum_B.sum() + logps.logp_chosen_B.sum() - logps.logp_rejected_B.sum()
    finally:
        model.train(was_training)
