"""How many tokens a micro-batch may have: what autograd keeps of a token is measured, not guessed.

    bytes(T) = kept_bytes_a_token * T      T = (free - gradients and optimizer states) / kept_bytes_a_token

What is kept is counted where autograd saves it, over two packed rows of different length; their difference is what a
token costs. It holds on any device, for any adapter, precision and checkpointing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor, nn

# A CPU is no faster with longer micro-batches (docs/log.md), a GPU hardly; shorter ones need less memory.
MOST_TOKENS = {"cpu": 1024, "cuda": 32768}
LEAST_TOKENS = 256
CONTROL_GROUP = Path("/sys/fs/cgroup")
# What is free is not all for the taking: fragments, and intermediate results of the layer that is at work.
USABLE = 0.7


class TokenBudget(NamedTuple):
    """How long micro-batches may be, and why.

    Args:
        max_tokens: Tokens.
        kept_bytes_a_token: Measured.
        free_bytes: Found free, after what gradients and optimizer will need.
    """

    max_tokens: int
    kept_bytes_a_token: float
    free_bytes: int

    def __str__(self) -> str:
        return (
            f"at most {self.max_tokens:,} tokens a micro-batch"
            f" ({self.kept_bytes_a_token / 1e6:.2f} MB a token, {self.free_bytes / 2**30:.1f} GiB free)"
        )


def token_budget(model: nn.Module, forward: Callable[[int], Any], *, processes: int = 1) -> TokenBudget:
    """The longest micro-batches that fit.

    Args:
        model: The model, on its device, trainable parameters marked.
        forward: Computes a loss over a packed row of so many tokens, with gradients, as in training.
        processes: How many train together; on CPUs they share the memory.

    Returns:
        The budget.
    """
    device = next(model.parameters()).device
    short, long = 64, 192
    per_token = max((_kept_bytes(forward, long) - _kept_bytes(forward, short)) / (long - short), 1.0)
    trainable_bytes = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    found = free_bytes(device) // (processes if device.type == "cpu" else 1)
    free = max(0, found - 3 * trainable_bytes)  # gradients, two moments of Adam
    fits = int(USABLE * free / per_token)
    most = MOST_TOKENS.get(device.type, MOST_TOKENS["cuda"])
    return TokenBudget(max(LEAST_TOKENS, min(fits, most)), per_token, free)


def _kept_bytes(forward: Callable[[int], Any], tokens: int) -> int:
    """Bytes that autograd keeps for the backward pass of one forward pass, parameters among them."""
    kept: dict[int, int] = {}
    alive = []  # so that no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        alive.append(storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.enable_grad():
        forward(tokens)
    return sum(kept.values())


def free_bytes(device: torch.device) -> int:
    """Memory that can still be had on a device: on a CPU within the limit of the control group, if there is one."""
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
    # Files that were read, such as the model's, count as used until somebody else needs the room.
    return min(available, limit - used + int(kinds["inactive_file"]))
