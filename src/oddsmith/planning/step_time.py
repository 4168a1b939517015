"""Predict the time of a step by a roofline over what a rank computes, reads, writes and sends. Nothing was measured.

    products    (6 where weights are trained, 4 under an adapter) x weights x tokens, 2 more with checkpointing
    attention   3.5 x 4 x channels x keys that are seen
    memory      MOVED x the bytes that are kept, 6 bytes for each weight of 4 bits, what the optimizer reads and writes
    host        LAUNCHES for a layer of each micro-batch
    exchange    DDP 2 (N-1)/N of the gradients; FSDP2, ZeRO-3 3 (N-1)/N of the weights; ZeRO-2 2 (N-1)/N of both

Lower end: products, attention and memory one after the other, or the host if it takes longer, and the exchange behind
them, at the rates of ``cards.py``. It agrees to 12% with a roofline over every kernel
(``benchmarks/results/gpu_roofline.md``). Upper end: half as much again, and the exchange on top.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import NamedTuple

import torch

from .cards import Card
from .efficiency import Efficiency
from .ranks import DDP, FSDP2, ZERO_2, ZERO_3, Sharing, WeightSizes

MOVED = 11.5  # times what is kept for the backward pass is read and written: of four works in gpu_roofline.md
BYTES_OF_4BIT = 6  # read and written to write a weight of 4 bits in 16, forward and backward
LAUNCHES = {"trained": 100, "adapter": 120, "4bit": 154}  # of a layer in a micro-batch (gpu_roofline.md)
LAUNCH_S = 12e-6  # of the host, for each
OPTIMIZER_BYTES = 28  # a trained number: clipping, and AdamW in float32
UPPER = 1.5
NODE_LINK = 25e9  # bytes a second of a GPU to another machine, each way: InfiniBand of 200 Gbit/s for each
CPU_LINK = 3e9  # of processes on one CPU, over gloo


class StepTime(NamedTuple):
    """The predicted time of a step in seconds: from, to; and how much of it is exchange."""

    lower_s: float
    upper_s: float
    exchange_s: float
    tokens_per_s: float  # of sequences, over all processes, at the lower end

    @property
    def middle_s(self) -> float:
        """Return the middle of both ends."""
        return (self.lower_s + self.upper_s) / 2


@dataclass(frozen=True)
class Computed:
    """What a step computes on a rank."""

    body_numbers: int  # weights that a token is multiplied by, without the output layer
    head_numbers: int
    layers: int
    channels: int  # heads times their channels
    adapter: bool
    four_bit: bool
    checkpointing: bool
    kept_per_token: float  # bytes without checkpointing
    compute_bytes: int  # of a number in the type of the run


def step_time(
    computed: Computed, sizes: WeightSizes, plan: Efficiency, sharing: Sharing, card: Card, *, nodes: int
) -> StepTime:
    """Predict the time of a step of the slowest rank.

    Args:
        computed: What a token takes.
        sizes: Of the weights.
        plan: Tokens of a step.
        sharing: How the training is spread.
        card: Its rates.
        nodes: Machines.

    Returns:
        The time.
    """
    work = plan.slowest_share
    passes = (4 if computed.adapter else 6) + (2 if computed.checkpointing else 0)
    products = passes * (computed.body_numbers * plan.computed_tokens + computed.head_numbers * plan.entries)
    seen = 3.5 + (1 if computed.checkpointing else 0)
    attention = seen * 4 * computed.channels * plan.seen_keys * computed.layers
    moved = MOVED * computed.kept_per_token * plan.computed_tokens * (4 / 3 if computed.checkpointing else 1)
    if computed.four_bit:
        moved += BYTES_OF_4BIT * sizes.quantised_numbers * plan.micro_batches
    rate = card.bf16 if computed.compute_bytes == 2 else card.float32
    attention_rate = min(rate, sum(card.attention) / 2)
    device_s = work * (products / rate + attention / attention_rate + moved / card.bytes)
    launches = LAUNCHES["4bit" if computed.four_bit else "adapter" if computed.adapter else "trained"]
    host_s = launches * computed.layers * plan.micro_batches * LAUNCH_S * (4 / 3 if computed.checkpointing else 1)
    share = sharing.parts if sharing.kind not in ("one process", DDP) else 1
    optimizer_s = OPTIMIZER_BYTES * sizes.trained_numbers / share / card.bytes
    exchange_s = _sent_bytes(sharing, sizes, computed, plan) / (NODE_LINK if nodes > 1 else card.link)
    compute_s = max(device_s, host_s) + optimizer_s
    lower = max(compute_s, exchange_s)
    return StepTime(
        lower,
        UPPER * compute_s + exchange_s,
        exchange_s,
        plan.sequence_tokens * sharing.ranks / lower if lower else 0.0,
    )


def _sent_bytes(sharing: Sharing, sizes: WeightSizes, computed: Computed, plan: Efficiency) -> float:
    """Return what a rank sends in a step: gradients once a step, weights for every micro-batch."""
    others = (sharing.ranks - 1) / sharing.ranks
    gradients = sizes.trained_bytes
    weights = computed.compute_bytes * sizes.numbers
    if sharing.kind == DDP:
        return 2 * others * gradients
    if sharing.kind == ZERO_2:
        return others * (gradients * plan.micro_batches + 4 * sizes.trained_numbers)
    if sharing.kind in (FSDP2, ZERO_3):
        return others * (2 * weights + gradients) * plan.micro_batches
    return 0.0


def this_cpu(memory: int, dtype: torch.dtype) -> Card:
    """Return this machine's CPU as a card, by a product and a copy of a tenth of a second."""
    rates = {kind: _product_rate(kind) for kind in {dtype, torch.float32}}
    source, target = torch.ones(8 << 20), torch.empty(8 << 20)
    started = time.perf_counter()
    for _ in range(3):
        target.copy_(source)
    copied = 3 * 2 * source.numel() * 4 / (time.perf_counter() - started)
    fast = rates[dtype]
    # The attention of a CPU is products of float32 and a softmax (attention/cpu.py).
    slow = rates[torch.float32] / 2
    return Card(fast, rates[torch.float32], copied, (slow, slow), (0, 0), memory, CPU_LINK)


def _product_rate(dtype: torch.dtype, size: int = 768) -> float:
    left, right = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
    left @ right
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best
