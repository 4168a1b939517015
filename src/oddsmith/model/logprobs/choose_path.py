"""Which path a run takes, and how long its micro-batches may be: asked of the model itself, once, said in a line."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from ...batching.collate import PairCollator
from ...batching.forest import forest_batch
from ...config import ORPOConfig
from .paths import ForestPath, PaddedPath
from .self_check import Verdict, check_forest
from .token_budget import token_budget

logger = logging.getLogger(__name__)


def choose_path(
    model: nn.Module,
    args: ORPOConfig,
    tokenizer: PreTrainedTokenizerBase,
    padded: PaddedPath,
    *,
    overridden: list[str],
    precision: Callable[[], AbstractContextManager],
    least: Callable[[int], int],
) -> ForestPath | PaddedPath:
    """The packed path wherever it is exact, with a budget of tokens for its micro-batches; padded batches otherwise.

    Args:
        model: The model as it will be trained, not wrapped yet.
        args: Settings.
        tokenizer: The model's.
        padded: The other path.
        overridden: Methods of the trainer that somebody else has written, for padded batches.
        precision: The context the training computes in (autocast).
        least: The least of a number over all processes. They must choose alike, or they would wait for each other.

    Returns:
        The path, whose ``reason`` has been logged.
    """
    verdict = _verdict(model, args, tokenizer, padded, overridden, precision)
    if not least(verdict.forest) and verdict.forest:
        verdict = Verdict(False, "another process found that it cannot be packed")
    transform, lean = verdict.transform, verdict.lean
    if transform is None or lean is None:
        logger.warning("Training on padded batches, which is slower: %s.", verdict.reason)
        return replace(padded, reason=verdict.reason)
    path = ForestPath(args.nll_on, transform, lean, verdict.reason)
    if isinstance(args.max_tokens_per_microbatch, str):  # "auto"
        budget = token_budget(
            model, lambda tokens: _one_forward(model, path, tokens, precision), processes=args.world_size
        )
        budget = budget._replace(max_tokens=least(budget.max_tokens))
        path.max_tokens, path.reason = budget.max_tokens, f"{verdict.reason}; {budget}"
    else:
        path.max_tokens = args.max_tokens_per_microbatch
    logger.info("Training on prefix forests: %s.", path.reason)
    return path


def _verdict(
    model: nn.Module,
    args: ORPOConfig,
    tokenizer: PreTrainedTokenizerBase,
    padded: PaddedPath,
    overridden: list[str],
    precision: Callable[[], AbstractContextManager],
) -> Verdict:
    if not args.prefix_forest:
        return Verdict(False, "prefix_forest is off")
    if type(padded.collator) is not PairCollator:
        return Verdict(False, f"{type(padded.collator).__name__} makes them")
    if overridden:
        return Verdict(False, f"{' and '.join(overridden)} may expect them")
    if args.neftune_noise_alpha:
        return Verdict(False, "the noise of neftune_noise_alpha depends on the length of a sequence")
    return check_forest(model, tokenizer, pad_token_id=padded.pad_token_id, precision=precision)


def _one_forward(
    model: nn.Module, path: ForestPath, tokens: int, precision: Callable[[], AbstractContextManager]
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
        with precision(), path.around(model):
            logps = path.logps(model, batch)
            return logps.nll_sum_B.sum() + logps.logp_chosen_B.sum() - logps.logp_rejected_B.sum()
    finally:
        model.train(was_training)
