"""Let processes that train together halve their token budget together, where one of them runs out of memory.

DDP:
    before the first two steps   all of them compute a row as long as the budget, exchange no gradients, and halve the
                                 budget until the row fits everywhere; the second time with the optimizer's states
    in a step                    each computes all of its micro-batches by itself. Then all of them say whether they
                                 got there: if one did not, all compute the step again; else they exchange gradients

DDP would exchange gradients within the backward pass of the last micro-batch, and a process that runs out of memory
there leaves the others waiting for ever. The processes talk through their hosts (gloo), so no GPU is waited for.

FSDP2, where every layer communicates:
    in a step                    a process without memory goes on with the others to the end of a micro-batch, without
                                 computing (``fsdp_passes.py``). Then all of them say whether they computed it

DeepSpeed communicates in ways of its own: there the run ends wherever memory runs out.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from datetime import timedelta
from itertools import groupby
from traceback import walk_tb
from typing import Any

import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, distributed, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors
from torch.nn.parallel import DistributedDataParallel

from ..model.limits import measured_ids
from ..model.logprobs.padded import unwrap
from ..model.logprobs.paths import ForestPath, loss_of_pairs, pair_of
from ..model.logprobs.token_budget import MIN_TOKENS
from ..model.modules import in_training_mode
from ..system.memory import is_out_of_memory
from .fsdp_passes import FsdpPasses

logger = logging.getLogger(__name__)

FSDP_SOURCE = "_fully_shard"  # the folder of torch's FSDP2
BUCKET_BYTES = 25 * 2**20  # as DDP's own
NO_LIMIT = 2**62  # what a process says that did not run out of memory


class HalvedByOthers(Exception):
    """Another process ran out of memory in this step; ``max_tokens`` is the new budget, 0 if nothing can be halved."""

    def __init__(self, max_tokens: int):
        super().__init__(max_tokens)
        self.max_tokens = max_tokens


class SharedBudget:
    """The token budget of processes that train one model by DDP or FSDP2; all of them make one at the same time.

    Args:
        model: The model, as DDP or FSDP2 has wrapped it.
        timeout_s: How long a process waits for the others, ``ddp_timeout``.
    """

    def __init__(self, model: nn.Module, timeout_s: float) -> None:
        is_gloo = distributed.get_backend() == "gloo"
        timeout = timedelta(seconds=timeout_s)
        self._group = distributed.group.WORLD if is_gloo else distributed.new_group(backend="gloo", timeout=timeout)
        self._passes = FsdpPasses(model) if FsdpPasses.is_possible(model) else None
        self._rehearsals = 0 if self._passes else 2
        self.is_exchanging = False  # everybody has computed the step, and waits for the others' gradients

    @staticmethod
    def is_possible(model: nn.Module) -> bool:
        """Return whether it is known when the processes communicate: not in a way of the user's own."""
        is_ddp = isinstance(model, DistributedDataParallel) and not getattr(model, "_comm_hooks", ())
        return (is_ddp or FsdpPasses.is_possible(model)) and distributed.is_gloo_available()

    def is_of(self, model: nn.Module) -> bool:
        """Return whether this can be the budget of a model."""
        return self._passes is None or self._passes.is_of(model)

    @property
    def exchanges_at_end(self) -> bool:
        """Whether ``exchange_gradients`` follows the last micro-batch, and no gradients are exchanged within it."""
        return self._passes is None

    def least(self, number: int) -> int:
        """Return the smallest of the processes' numbers."""
        numbers = torch.tensor([number], dtype=torch.int64, device="cpu")
        distributed.all_reduce(numbers, op=distributed.ReduceOp.MIN, group=self._group)
        return int(numbers)

    def begin_micro_batch(self) -> None:
        """Begin to compute a micro-batch."""
        self.is_exchanging = False
        if self._passes is not None:
            self._passes.begin()

    def finish_micro_batch(self) -> None:
        """Take part in what the others still do together in a micro-batch that this process has given up."""
        if self._passes is not None:
            self._passes.finish()

    def end_micro_batch(self, *, is_last: bool) -> None:
        """Say that this process has computed a micro-batch; ``HalvedByOthers`` where another has given it up."""
        if self.exchanges_at_end and not is_last:
            return
        least = self.least(NO_LIMIT)
        if least < NO_LIMIT:
            raise HalvedByOthers(least)

    def was_exchanging(self, error: BaseException) -> bool:
        """Return whether memory ran out while FSDP gathered or scattered.

        What the other processes have seen of that exchange is not known then, so this one cannot go on with them.
        """
        frames = walk_tb(error.__traceback__)
        return self._passes is not None and any(FSDP_SOURCE in frame.f_code.co_filename for frame, _ in frames)

    def drop_gradients(self, model: Any) -> None:
        """Drop the gradients of a step that is computed again, in every process."""
        if self._passes is not None:
            self._passes.reset()
        else:  # where the first forward pass failed, DDP would broadcast buffers once more
            model.require_forward_param_sync = False

    def exchange_gradients(self, model: DistributedDataParallel) -> None:
        """Replace the gradients of each process by their mean over all of them, in place but for one bucket.

        A parameter that a process did not use counts as 0 there; one that none of them used keeps no gradient.
        """
        self.is_exchanging = True
        trained = [parameter for parameter in model.module.parameters() if parameter.requires_grad]
        is_used = torch.tensor([parameter.grad is not None for parameter in trained], dtype=torch.int8, device="cpu")
        distributed.all_reduce(is_used, op=distributed.ReduceOp.MAX, group=self._group)
        gradients = []
        for parameter in (trained[number] for number in is_used.nonzero().flatten().tolist()):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad = parameter.grad.contiguous()
            gradients.append(parameter.grad)
        for bucket in _buckets(gradients):
            flat = bucket[0] if len(bucket) == 1 else _flatten_dense_tensors(bucket)
            flat.div_(model.process_group.size())
            distributed.all_reduce(flat, group=model.process_group)
            if len(bucket) > 1:
                torch._foreach_copy_(bucket, _unflatten_dense_tensors(flat, bucket))
        model.require_forward_param_sync = True  # as after DDP's own exchange: buffers are next

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


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield gradients in lists that are exchanged at once: of one kind and at most ``BUCKET_BYTES``, or a single one.

    An adapter has hundreds of small ones, and each exchange costs its own launch.
    """
    gradients = sorted(gradients, key=lambda gradient: (str(gradient.device), str(gradient.dtype)))  # keeps their order
    for _, of_a_kind in groupby(gradients, key=lambda gradient: (gradient.device, gradient.dtype)):
        bucket: list[Tensor] = []
        for gradient in of_a_kind:
            if bucket and sum(one.nbytes for one in bucket) + gradient.nbytes > BUCKET_BYTES:
                yield bucket
                bucket = []
            bucket.append(gradient)
        yield bucket


def _fits(model: nn.Module, path: ForestPath, pairs: Sequence[dict[str, Any]]) -> bool:
    """Return whether the memory suffices for the forward and backward pass of some pairs."""
    devices = range(torch.cuda.device_count())
    try:  # the random numbers of the training stay as they are
        with torch.random.fork_rng(devices=devices), path.around(model), in_training_mode(model):
            loss_of_pairs(model, path, pairs, path.nll_on).backward()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
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
