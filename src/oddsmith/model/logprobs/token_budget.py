"""Measure how many tokens a micro-batch may have, and share the free memory out between layers and head.

    peak(T) = fixed + per_token * T + head(T)         head(T) = min(head_bytes, head_per_token * T)
    peak(T) <= USABLE * (free - gradients, optimizer states and what processes exchange)

The bytes of a real forward and backward pass are measured for packed rows of several lengths: on a GPU by torch's
allocator, elsewhere by adding up the tensors that are alive. This holds for any adapter, precision, gradient
checkpointing and layer, if the rows are measured as they are trained on.

The head keeps residuals as wide as the vocabulary, within a budget of its own, and computes the rest of them again in
the backward pass. Its budget is small while the peaks are measured, so that it is full, and none of it is counted as a
cost per token. Then all of a micro-batch's residuals fit, or the micro-batch is shortened for them until shorter ones
would cost more than computing them again.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ...system.machine import free_memory_bytes
from ...system.memory import is_device_out_of_memory
from ...system.shards import own_share
from .head import BUDGET_BYTES

# A CPU is no faster with longer micro-batches (docs/log.md), a GPU hardly; shorter ones need less memory.
MAX_TOKENS = {"cpu": 1024, "cuda": 32768}
# Micro-batches are not made shorter than this for the head: from here on, by calculation, a GPU computes at full rate.
EFFICIENT_TOKENS = {"cpu": 1024, "cuda": 8192}
MIN_TOKENS = 256
# The rest of the free memory is for fragmentation, and for what other rows need more than the measured ones.
USABLE = 0.8
# Lengths of the rows. On a GPU they fill its kernels' blocks, and the longer one comes first, so that kernels are
# compiled by then; where two do not fit, shorter ones tell.
ROWS = {"cpu": ((64, 128, 192),), "cuda": ((4096, 2048), (1024, 512), (128, 64))}
MOST_BENT = 3  # times as much as in the measured rows a token may cost in the longest one
# Rows of logits that the head may hold while the layers are measured: fewer than there are tokens in any row.
MEASURED_HEAD_ROWS = {"cpu": 16, "cuda": 256}
CHUNK_ROWS = {"cpu": 256, "cuda": 1024}  # of logits with which the head computes at full rate (head.py)

Run = Callable[[int, int], Tensor]  # tokens of a row, bytes for its head -> a loss over it, as in training


class TokenBudget(NamedTuple):
    """The largest size of micro-batches in tokens, and the measurements it is computed from."""

    max_tokens: int
    bytes_per_token: float  # without the head
    fixed_bytes: int  # of a step beside tokens and head: gradients that are alive, copies of weights
    head_bytes: int  # what the head may take
    free_bytes: int  # after what gradients and optimizer will need

    def __str__(self) -> str:
        return (
            f"at most {self.max_tokens:,} tokens a micro-batch"
            f" ({self.bytes_per_token / 1e6:.2f} MB a token, {self.free_bytes / 2**30:.1f} GiB free)"
        )


def token_budget(
    model: nn.Module,
    run: Run,
    *,
    vocabulary: int,
    head_bytes_per_token: int,
    processes: int = 1,
    exchanged: bool = False,
    backward: bool = True,
) -> TokenBudget:
    """Return the size of the largest micro-batches that fit into memory, between ``MIN_TOKENS`` and ``MAX_TOKENS``.

    Args:
        model: The model as it will be trained.
        run: ``run(tokens, head_bytes)`` computes a loss over a packed row of so many tokens, with gradients, as in
            training, with so many bytes for the head.
        vocabulary: Width of the logits.
        head_bytes_per_token: What the head keeps of a token where its budget has room; 0 for a frozen one.
        processes: How many train together; on CPUs they share the memory.
        exchanged: Whether processes exchange gradients in buffers that take memory of their own, as DDP's on a GPU.
        backward: Whether a backward pass may be run; DeepSpeed's is a part of its step.

    Returns:
        The budget.
    """
    device = next(model.parameters()).device
    kind = _kind(device)
    available = free_bytes(device) // (processes if device.type == "cpu" else 1)
    # Gradients, two moments of Adam, and DDP's buckets, which hold all gradients once more.
    free = max(0, available - (4 if exchanged else 3) * trainable_bytes(model))
    usable, chunk = int(USABLE * free), min(BUDGET_BYTES, CHUNK_ROWS[kind] * vocabulary * 4)
    per_token, fixed = _measured(model, run, MEASURED_HEAD_ROWS[kind] * vocabulary * 4, usable - chunk, backward)
    max_tokens, head_bytes = share(
        max(0, usable - fixed),
        per_token,
        head_bytes_per_token,
        chunk=chunk,
        most=MAX_TOKENS[kind],
        efficient=EFFICIENT_TOKENS[kind],
    )
    return TokenBudget(max(MIN_TOKENS, max_tokens), per_token, fixed, head_bytes, free)


def share(
    usable: int, per_token: float, head_per_token: int, *, chunk: int, most: int, efficient: int
) -> tuple[int, int]:
    """Share so many bytes out: return the tokens of a micro-batch, and the bytes of its head.

    Where ``efficient`` tokens fit with all their residuals, the head gets room for all that are kept; else what is left
    beside so many tokens, and a ``chunk`` (at most half of the memory) before tokens get anything.
    """
    # A row may have a few more entries than tokens: a branch point predicts several.
    with_residuals = per_token + head_per_token * 17 / 16
    if head_per_token and usable / with_residuals >= efficient:
        tokens = min(int(usable / with_residuals), most)
        return tokens, max(chunk, tokens * head_per_token * 17 // 16)
    least = min(chunk, usable // 2)
    tokens = int((usable - least) / per_token)
    if not head_per_token:  # it holds one chunk, and keeps none
        return min(tokens, most), max(least, 1)
    tokens = min(tokens, efficient)
    return tokens, max(least, int(usable - tokens * per_token), 1)


def trainable_bytes(model: nn.Module) -> int:
    """Return the bytes of the parameters that are trained; of sharded ones, those of this process."""
    shares = (own_share(parameter) for parameter in model.parameters() if parameter.requires_grad)
    return sum(share.numel() * share.element_size() for share in shares)


# ---- The peak of a step


def _kind(device: torch.device) -> str:
    return "cpu" if device.type == "cpu" else "cuda"


class StepBytes(NamedTuple):
    """The bytes that a forward and backward pass takes, beside the model and the gradients of its parameters."""

    kept: int  # at the end of the forward pass: what is kept for the backward pass
    peak: int


def _measured(model: nn.Module, run: Run, head_bytes: int, usable: int, backward: bool) -> tuple[float, int]:
    """Return what a token costs, and what a step takes beside its tokens.

    Where even four times what a short row keeps leaves room for as many tokens as a micro-batch may ever have, no
    longer row is measured: that takes longer on a CPU.
    """
    device = next(model.parameters()).device
    kind = _kind(device)
    most = MAX_TOKENS[kind]
    for lengths in ROWS[kind]:
        try:
            found: list[StepBytes] = []
            for tokens in lengths:
                found.append(step_bytes(model, partial(run, tokens, head_bytes), backward=backward))
                (kept, peak), short = found[0], lengths[0]
                if device.type == "cpu" and 4 * most * kept // short + peak - kept <= usable:
                    return kept / short, peak - kept
        except RuntimeError as error:
            if not is_device_out_of_memory(error) or lengths is ROWS[kind][-1]:
                raise
            torch.cuda.empty_cache()
        else:
            break
    return fit(lengths, found, most)


def fit(lengths: Sequence[int], found: Sequence[StepBytes], most: int) -> tuple[float, int]:
    """Return cost per token and fixed bytes, from what two rows take, or three that are evenly spaced.

    The peak of a short row may lie where all its gradients are, that of a long one where all that it keeps is still
    there. So what rows keep is one line, and what comes on top of it in the backward pass another one, which does not
    fall. A CPU's attention keeps a weight for each key that a token sees (``attention/cpu.py``), so that what one
    sequence keeps has a quadratic part; the cost is then that of a token in the longest row.
    """
    first, last = lengths[0], lengths[-1]

    def line(values: Sequence[int]) -> tuple[float, float]:
        slope = (values[-1] - values[0]) / (last - first)
        return slope, values[0] - slope * first

    kept = [step.kept for step in found]
    slope, fixed = line(kept)
    if len(lengths) == 3:
        bend = max(0.0, (kept[2] - 2 * kept[1] + kept[0]) / (2 * (lengths[1] - first) ** 2))
        bend = min(bend, MOST_BENT * max(slope, 1.0) / most)  # a recurrence in chunks grows in steps
        fixed += bend * first * last
        slope += bend * (most - first - last)
    on_top = [step.peak - step.kept for step in found]
    more, more_fixed = line(on_top)
    if more < 0:
        more, more_fixed = 0.0, max(on_top)
    return max(slope + more, 1.0), max(0, int(fixed + more_fixed))


def step_bytes(model: nn.Module, compute_loss: Callable[[], Tensor], *, backward: bool = True) -> StepBytes:
    """Measure a forward pass, and a ``backward`` pass.

    Gradients are dropped one by one, as soon as they are there, and those that the parameters have stay.
    """
    device = next(model.parameters()).device
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = [parameter.grad for parameter in trained]
    for parameter in trained:
        parameter.grad = None
    hooks = [parameter.register_post_accumulate_grad_hook(_drop_gradient) for parameter in trained]
    meter: LiveBytes | AllocatedBytes
    meter = AllocatedBytes(device) if device.type == "cuda" else LiveBytes([*model.parameters(), *model.buffers()])
    try:
        with meter, torch.enable_grad():
            loss = compute_loss()
            kept = meter.now
            if loss.requires_grad and backward:
                loss.backward()
            return StepBytes(kept, meter.peak)
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, gradient in zip(trained, before, strict=True):
            parameter.grad = gradient


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


class AllocatedBytes:
    """What torch's allocator has given out on a GPU since entering."""

    def __init__(self, device: torch.device):
        self._device = device

    def __enter__(self) -> None:
        torch.cuda.reset_peak_memory_stats(self._device)
        self._before = torch.cuda.memory_allocated(self._device)

    def __exit__(self, *error: object) -> None:
        """Measure no more."""

    @property
    def now(self) -> int:
        return torch.cuda.memory_allocated(self._device) - self._before

    @property
    def peak(self) -> int:
        return torch.cuda.max_memory_allocated(self._device) - self._before


class LiveBytes(TorchDispatchMode):
    """Add up the bytes of all tensors that are made inside and are alive, but those of given ones."""

    def __init__(self, given: Iterable[Tensor]):
        super().__init__()
        self.now, self.peak = 0, 0
        self._known = {tensor.untyped_storage()._cdata for tensor in given}
        self._alive: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        for output in outputs if isinstance(outputs, tuple | list) else (outputs,):
            if isinstance(output, Tensor) and output.layout is torch.strided:
                self._add(output.untyped_storage())
        return outputs

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or key in self._alive:
            return

        def remove(_: Any) -> None:
            self.now -= size
            self._alive.pop(key, None)

        self._alive[key] = weakref.ref(storage, remove)
        self.now += size
        self.peak = max(self.peak, self.now)


# ---- The free memory


def free_bytes(device: torch.device) -> int:
    """Return a device's free memory; on a CPU within the limit of the control group, if there is one."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free_memory_bytes()
