"""Let processes that train together (DDP) halve their token budget together, where one of them runs out of memory.

    before the first two steps   all of them compute a row as long as the budget, exchange no gradients, and halve the
                                 budget until the row fits everywhere; the second time with the optimizer's states
    in a step                    gradients are exchanged in the backward pass of the last micro-batch. Before it all
                                 of them say whether they got there; if one did not, all compute the step again

The last micro-batch is a process's shortest. If memory runs out in it, the run ends: the others are waiting for
gradients by then. The processes talk through their hosts (gloo), so no GPU is waited for.

In FSDP and DeepSpeed every layer communicates: there the run ends wherever memory runs out.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ..model.limits import measured_ids
from ..model.logprobs.padded import unwrap
from ..model.logprobs.paths import ForestPath, loss_of_pairs, pair_of
from ..model.logprobs.token_budget import MIN_TOKENS
from ..model.modules import in_training_mode
from ..system.memory import is_device_out_of_memory

logger = logging.getLogger(__name__)

NO_LIMIT = 2**62  # what a process says that did not run out of memory


class HalvedByOthers(Exception):
    """Another process ran out of memory in this step; ``max_tokens`` is the new budget, 0 if nothing can be halved."""

    def __init__(self, max_tokens: int):
        super().__init__(max_tokens)
        self.max_tokens = max_tokens


class SharedBudget:
    """The token budget of processes that train one model by DDP; all of them have to make one at the same time."""

    def __init__(self) -> None:
        is_gloo = distributed.get_backend() == "gloo"
        self._group = distributed.group.WORLD if is_gloo else distributed.new_group(backend="gloo")
        self._rehearsals = 2
        self.is_settled = False  # for this attempt at the step: everybody has got as far as the last micro-batch

    @staticmethod
    def is_possible(model: nn.Module) -> bool:
        """Return whether the processes only communicate in the last backward pass of a step."""
        return isinstance(model, DistributedDataParallel) and distributed.is_gloo_available()

    def least(self, number: int) -> int:
        """Return the smallest of the processes' numbers."""
        numbers = torch.tensor([number], dtype=torch.int64, device="cpu")
        distributed.all_reduce(numbers, op=distributed.ReduceOp.MIN, group=self._group)
        return int(numbers)

    def begin_attempt(self) -> None:
        """Begin to compute a step, or begin it anew."""
        self.is_settled = False

    def settle(self) -> None:
        """Say that this process has got as far as the last micro-batch; ``HalvedByOthers`` where another has not."""
        least = self.least(NO_LIMIT)
        if least < NO_LIMIT:
            raise HalvedByOthers(least)
        self.is_settled = True

    def halve(self, max_tokens: int | None) -> int | None:
        """Say that this process ran out of memory, and which budget it asks for; return the one of all processes.

        ``None`` is asked for, and returned, where no smaller budget helps.
        """
        return self.least(max_tokens or 0) or None

    def rehearse(self, model: DistributedDataParallel, path: ForestPath, pair_tokens: int) -> bool:
        """Halve the budget of a path until a row of so many tokens fits everywhere; return whether it was halved.

        Gradients of the model are dropped. ``pair_tokens`` is the length of a pair, of which the row has several.
        """
        if self._rehearsals == 0:
            return False
        self._rehearsals -= 1
        before = path.max_tokens
        pair_tokens, num_ids = -self.least(-pair_tokens), measured_ids(unwrap(model))
        while path.max_tokens is not None and path.max_tokens > MIN_TOKENS:
            fits = _fits(model.module, path, _pairs(path.max_tokens, pair_tokens, num_ids))
            least = self.least(path.max_tokens if fits else path.max_tokens // 2)
            if least == path.max_tokens:
                break
            logger.warning(
                f"out of memory with {path.max_tokens:,} tokens in a micro-batch, of this or another process: before a"
                f" step is made the budget is halved to {least:,}"
            )
            path.lower(least)
        return path.max_tokens != before


def _fits(model: nn.Module, path: ForestPath, pairs: Sequence[dict[str, Any]]) -> bool:
    """Return whether the memory suffices for the forward and backward pass of some pairs."""
    try:
        with path.around(model), in_training_mode(model):
            loss_of_pairs(model, path, pairs, path.nll_on).backward()
    except RuntimeError as error:
        if not is_device_out_of_memory(error):
            raise
        fits = False
    else:
        fits = True
    model.zero_grad()
    if not fits:
        clear_device_cache(garbage_collection=True)
    return fits


def _pairs(tokens: int, pair_tokens: int, num_ids: int) -> list[dict[str, Any]]:
    """Return tokenized pairs of so many tokens together, which share nothing with one another, of so many ids."""
    pair_tokens = min(pair_tokens, tokens)
    prompt, answer = pair_tokens // 2, pair_tokens // 4
    pairs = []
    for number in range(tokens // pair_tokens):
        ids = 3 + np.arange(pair_tokens) % num_ids
        ids[:2] = 3 + number % num_ids, 3 + number // num_ids % num_ids
        pairs.append(pair_of(ids, prompt, answer))
    return pairs


def shortest_last(micro_batches: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return packed micro-batches with the shortest at the end."""
    last = min(range(len(micro_batches)), key=lambda i: micro_batches[i]["input_ids"].numel())
    return [*micro_batches[:last], *micro_batches[last + 1 :], micro_batches[last]]
