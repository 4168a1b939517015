"""Lay out and compute micro-batches in two ways with the same results, padded or packed, and choose one for a run.

A path says how rows become tensors, how long pairs are in its layout, which context a step needs, and how the model
turns tensors into log-probabilities. ``choose_path`` takes the packed one wherever the self-check finds it exact.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from accelerate.utils import send_to_device
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ...batching.collate import PaddedTensors, PairCollator
from ...batching.forest import forest_batch
from ...batching.loader import BatchMaker, LoadedRows
from ...batching.plan import Lengths, lengths_of
from ...config import ORPOConfig
from ...system.compilers import compiler_fault
from ..limits import measured_ids, position_rows
from .attention import forest_attention_in
from .head import BUDGET_BYTES, kept_bytes
from .memory_saving import MemorySavingLayers
from .output_transform import OutputTransform
from .packed import forest_logps, forest_tokens
from .padded import PairLogps, padded_tokens, pair_logps, unwrap
from .pair_tokens import PairTokens
from .self_check import Verdict, check_forest
from .sequence_wise import SequenceWiseLayers
from .token_budget import TokenBudget, token_budget

logger = logging.getLogger(__name__)


@dataclass
class PaddedPath:
    """Padded batches, for any model and any collator; most fields are those of ``pair_logps``."""

    collator: Callable[[list[dict[str, Any]]], dict[str, Any]]
    pad_token_id: int
    nll_on: str
    is_encoder_decoder: bool
    router_loss: bool
    reason: str = ""  # why not the packed path
    with_columns: bool = False  # whether the collator also gets what a row has beside its tokens

    name = "padded batches"
    max_tokens = None

    @property
    def batch_maker(self) -> BatchMaker:
        """Return the maker of padded tensors; every item is one micro-batch, under TRL's names."""
        tensors = PaddedTensors(self.collator, self.is_encoder_decoder, self.with_columns)
        return BatchMaker(tensors, one_each=True)

    @property
    def measure(self) -> Callable[[Mapping[str, Sequence[int]]], Lengths]:
        """Return a function that computes lengths of pairs from columns."""
        return partial(lengths_of, nll_on=self.nll_on, is_encoder_decoder=self.is_encoder_decoder)

    def around(self, model: nn.Module) -> AbstractContextManager[None]:
        """Return the context in which a step is computed."""
        return nullcontext()

    def halved(self, loaded: LoadedRows | None) -> int | None:
        """Return ``None``: the batch sizes fix the micro-batches, so they cannot be made smaller."""
        return None

    def logps(self, model: nn.Module, batch: Mapping[str, Any]) -> PairLogps:
        """Compute the log-probabilities of a micro-batch."""
        return pair_logps(
            model,
            batch,
            pad_token_id=self.pad_token_id,
            nll_on=self.nll_on,
            is_encoder_decoder=self.is_encoder_decoder,
            router_loss=self.router_loss,
        )

    def tokens(self, batch: Mapping[str, Any], token_logps: Tensor | None = None) -> PairTokens:
        """Return the tokens of a micro-batch, with the ``token_logps`` of its ``logps``, or with 0."""
        return padded_tokens(batch, token_logps, nll_on=self.nll_on, is_encoder_decoder=self.is_encoder_decoder)


@dataclass
class ForestPath:
    """Packed rows: each micro-batch is a prefix forest."""

    nll_on: str
    transform: OutputTransform
    memory_saving: MemorySavingLayers
    sequence_wise: SequenceWiseLayers
    reason: str  # what the self-check found
    max_tokens: int | None = None  # in a micro-batch; None: the batch sizes fix the micro-batches
    head_bytes: int = BUDGET_BYTES  # what the output layer may take; it computes twice what does not fit

    name = "prefix forest"

    @property
    def batch_maker(self) -> BatchMaker:
        """Return the maker of packed tensors."""
        return BatchMaker(partial(forest_batch, nll_on=self.nll_on))

    @property
    def measure(self) -> Callable[[Mapping[str, Sequence[int]]], Lengths]:
        """Return a function that computes lengths of pairs from columns; a prompt that is computed once counts once."""
        return partial(lengths_of, nll_on=self.nll_on, shared_prompt_from=self.sequence_wise.shared_prompt_from)

    @contextmanager
    def around(self, model: nn.Module) -> Iterator[None]:
        """Replace attention, memory-saving layers and those on sequences while a step is computed."""
        with forest_attention_in(model), self.memory_saving.applied(), self.sequence_wise.applied():
            yield

    def halved(self, loaded: LoadedRows | None) -> int | None:
        """Halve the token budget after running out of memory on ``loaded`` rows, log it, and return the new one.

        Return ``None`` where that would not help: every micro-batch is a single pair already, the batch sizes fix the
        micro-batches, or the rows are not known.
        """
        if self.max_tokens is None or loaded is None or all(len(rows) < 2 for rows in loaded.rows):
            return None
        longest = max(sum(int(self.measure(row).tokens) for row in rows) for rows in loaded.rows if len(rows) > 1)
        if longest <= self.max_tokens:  # otherwise a worker made the item before the budget was last halved
            self.lower(longest // 2)
            logger.warning(
                f"out of memory with {longest:,} tokens in a micro-batch: the step is repeated, from here on with at"
                f" most {self.max_tokens:,}"
            )
        return self.max_tokens

    def lower(self, max_tokens: int) -> None:
        """Lower the token budget to this one, unless it is lower already, and halve what the output layer may take."""
        if self.max_tokens is None or max_tokens < self.max_tokens:
            self.max_tokens = max_tokens
            self.head_bytes = max(min(self.head_bytes, BUDGET_BYTES), self.head_bytes // 2)

    def logps(self, model: nn.Module, batch: Mapping[str, Any]) -> PairLogps:
        """Compute the log-probabilities of a micro-batch."""
        return forest_logps(model, batch, transform=self.transform, head_bytes=self.head_bytes)

    def tokens(self, batch: Mapping[str, Any], token_logps: Tensor | None = None) -> PairTokens:
        """Return the tokens of a micro-batch, with the ``token_logps`` of its ``logps``, or with 0."""
        return forest_tokens(batch, token_logps)


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
    """Choose the packed path wherever it is exact, with a token budget for its micro-batches; padded batches otherwise.

    Args:
        model: The model as it will be trained, not wrapped yet.
        args: The run's settings.
        tokenizer: The model's tokenizer.
        padded: The other path.
        overridden: Methods of the trainer that a subclass has overridden; they may expect padded batches.
        precision: Makes the context in which the training computes (autocast).
        least: Returns the minimum of a number over all processes. They must choose alike, or they would wait for each
            other.

    Returns:
        The path. Its ``reason`` has been logged.
    """
    obstacle = obstacle_in_run(args, padded, overridden)
    if obstacle is None:
        verdict = check_forest(model, tokenizer, pad_token_id=padded.pad_token_id, precision=precision)
    else:
        verdict = Verdict(False, obstacle)
    if not least(verdict.forest) and verdict.forest:
        verdict = Verdict(False, "another process found that it cannot be packed")
    path = _packed_path(verdict, model, args, precision, least)
    if isinstance(path, str):
        logger.warning("Training on padded batches, which is slower: %s.", path)
        return replace(padded, reason=path)
    logger.info("Training on prefix forests: %s.", path.reason)
    return path


def _packed_path(
    verdict: Verdict,
    model: nn.Module,
    args: ORPOConfig,
    precision: Callable[[], AbstractContextManager],
    least: Callable[[int], int],
) -> ForestPath | str:
    """Return the packed path with its token budget, or why there is none."""
    if verdict.transform is None or verdict.memory_saving is None or verdict.sequence_wise is None:
        return verdict.reason
    path = ForestPath(args.nll_on, verdict.transform, verdict.memory_saving, verdict.sequence_wise, verdict.reason)
    is_automatic = isinstance(args.max_tokens_per_microbatch, str)
    budget, fault = None, None
    try:
        if is_automatic or next(model.parameters()).device.type != "cpu":  # kernels of the backward pass are compiled
            budget = _budget_of(model, path, args, precision)
    except Exception as error:
        fault = compiler_fault(error)
        if fault is None:
            raise
    if not least(fault is None):
        return fault or "another process could not compile a kernel"
    if not isinstance(args.max_tokens_per_microbatch, str):
        path.max_tokens = args.max_tokens_per_microbatch
    elif budget is not None:
        budget = budget._replace(max_tokens=least(budget.max_tokens), head_bytes=least(budget.head_bytes))
        path.max_tokens, path.head_bytes = budget.max_tokens, budget.head_bytes
        path.reason = f"{verdict.reason}; {budget}"
    return path


def obstacle_in_run(args: ORPOConfig, padded: PaddedPath, overridden: list[str]) -> str | None:
    """Return why this run needs padded batches, whatever its model."""
    if not args.prefix_forest:
        return "prefix_forest is off"
    if type(padded.collator) is not PairCollator:
        return f"the collator {type(padded.collator).__name__} makes padded batches"
    if overridden:
        return f"{' and '.join(overridden)} may expect padded batches"
    if args.neftune_noise_alpha:
        return "the noise of neftune_noise_alpha depends on the length of a sequence"
    if args.debug:
        return "debug looks for NaN in the model, which the check of packed rows puts there"
    return None


def _budget_of(
    model: nn.Module, path: ForestPath, args: ORPOConfig, precision: Callable[[], AbstractContextManager]
) -> TokenBudget:
    """Measure the token budget of a path on the model as it trains: forward and backward, in its mode and precision."""
    with precision():  # in whose type the residuals are
        kept = kept_bytes(unwrap(model).get_output_embeddings(), 1)
    was_training = model.training
    model.train()
    try:
        with path.around(model):
            return token_budget(
                model,
                partial(loss_of_a_row, model, path, precision),
                vocabulary=unwrap(model).config.get_text_config().vocab_size,
                head_bytes_per_token=kept,
                processes=args.world_size,
                exchanged=_has_buckets(model, args),
                backward=args.deepspeed_plugin is None,  # also where accelerate's launcher asks for it
            )
    finally:
        model.train(was_training)


def _has_buckets(model: nn.Module, args: ORPOConfig) -> bool:
    """Return whether DDP's buckets will take memory beside the gradients, as many bytes as these.

    A CPU's system gives memory to what is written, and nothing is written to them in a run that has a budget
    (``training/shared_budget.py``).
    """
    on_cpu = next(model.parameters()).device.type == "cpu"
    return args.world_size > 1 and not (args.fsdp or args.deepspeed_plugin or on_cpu)


def loss_of_a_row(
    model: nn.Module, path: ForestPath, precision: Callable[[], AbstractContextManager], tokens: int, head_bytes: int
) -> Tensor:
    """Compute a loss over a packed row of one pair as in a training step; the first half of it is a shared prompt.

    Where some layers run on whole sequences, and a prompt counts twice, hardly anything is shared.
    """
    ids = np.arange(tokens) % measured_ids(unwrap(model)) + 3
    prompt = tokens // 2 if path.sequence_wise.shares_prompts else 1
    answer = (tokens - prompt) // 2
    with precision():
        return loss_of_pairs(model, replace(path, head_bytes=head_bytes), [pair_of(ids, prompt, answer)], "sequence")


def pair_of(ids: np.ndarray, prompt: int, answer: int) -> dict[str, Any]:
    """Return a tokenized pair out of ids: so many of a prompt, so many of the chosen answer, the rest of the other."""
    chosen, rejected = ids[: prompt + answer], np.concatenate([ids[:prompt], ids[prompt + answer :] + 1])
    return {
        "chosen_input_ids": chosen,
        "rejected_input_ids": rejected,
        "chosen_prompt_tokens": prompt,
        "rejected_prompt_tokens": prompt,
        "chosen_end": len(chosen),
        "rejected_end": len(rejected),
    }


def loss_of_pairs(model: nn.Module, path: ForestPath, pairs: Sequence[dict[str, Any]], nll_on: str) -> Tensor:
    """Compute a loss over a packed row of pairs that takes the memory of a step: only their sizes count."""
    batch = send_to_device(forest_batch(pairs, nll_on), next(model.parameters()).device)
    if limit := position_rows(unwrap(model)):
        batch["position_ids"] = batch["position_ids"].clamp(max=limit - 1)
    logps = path.logps(model, batch)
    return logps.nll_sum_B.sum() + logps.logp_chosen_B.sum() - logps.logp_rejected_B.sum()
