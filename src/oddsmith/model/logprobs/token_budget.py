"""Measure how many tokens a micro-batch may have.

    bytes(T) = saved_bytes_per_token * T      T = (free - gradients and optimizer states) / saved_bytes_per_token

What autograd saves is counted over two packed rows of different length; their difference is what a token costs. This
holds on any device, for any adapter, precision and gradient checkpointing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor, nn

# A CPU is no faster with longer micro-batches (docs/log.md), a GPU hardly; shorter ones need less memory.
MAX_TOKENS = {"cpu": 1024, "cuda": 32768}
MIN_TOKENS = 256
CONTROL_GROUP = Path("/sys/fs/cgroup")
# The rest of the free memory is for fragmentation and for intermediate results of the layer that is being computed.
USABLE = 0.7


class TokenBudget(NamedTuple):
    """The largest size of micro-batches in tokens, and the two measurements it is computed from."""

    max_tokens: int
    saved_bytes_per_token: float
    free_bytes: int  # after what gradients and optimizer will need

    def __str__(self) -> str:
        return (
            f"at most {self.max_tokens:,} tokens a micro-batch"
            f" ({self.saved_bytes_per_token / 1e6:.2f} MB a token, {self.free_bytes / 2**30:.1f} GiB free)"
        )


def token_budget(model: nn.Module, forward: Callable[[int], Any], *, processes: int = 1) -> TokenBudget:
    """Return the size of the largest micro-batches that fit into memory, between ``MIN_TOKENS`` and ``MAX_TOKENS``.

    ``forward(tokens)`` computes a loss over a packed row of so many tokens, with gradients, as in training.
    ``processes`` is how many train together; on CPUs they share the memory.
    """
    device = next(model.parameters()).device
    short, long = 64, 192
    per_token = max((_saved_bytes(forward, long) - _saved_bytes(forward, short)) / (long - short), 1.0)
    trainable_bytes = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    available = free_bytes(device) // (processes if device.type == "cpu" else 1)
    free = max(0, available - 3 * trainable_bytes)  # gradients, two moments of Adam
    fits = int(USABLE * free / per_token)
    max_tokens = min(fits, MAX_TOKENS.get(device.type, MAX_TOKENS["cuda"]))
    return TokenBudget(max(MIN_TOKENS, max_tokens), per_token, free)


def _saved_bytes(forward: Callable[[int], Any], tokens: int) -> int:
    """Count the bytes that autograd saves for the backward pass of one forward pass, parameters among them."""
    sizes: dict[int, int] = {}
    alive = []  # so that no address is used twice

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        alive.append(storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor), torch.enable_grad():
        forward(tokens)
    return sum(sizes.values())


def free_bytes(device: torch.device) -> int:
    """Return a device's free memory; on a CPU within the limit of the control group, if there is one."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    available = psutil.virtual_memory().available
    try:
        limit = int((CONTROL_GROUP / "memory.max").read_text())
        used = int((CONTROL_GROUP / "memory.current").read_text())
        kinds = dict(line.split() for line in (CONTROL_GROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such file, or "max": no limit
        return available
    # Cached files, such as the model's, count as used, but the kernel drops them when memory is needed.
    return min(available, limit - used + int(kinds["inactive_file"]))
