"""Let memory run out in a real training: in a layer, by a simulated error, or wherever a limit of the system is met."""

import ctypes
import os
import resource
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback


class Shortage(torch.autograd.Function):
    """The identity, which finds no memory in its forward or in its backward pass where it is told so."""

    @staticmethod
    def forward(ctx, hidden, finds_none, place):
        ctx.finds_none, ctx.place = finds_none, place
        return Shortage.tried(hidden, finds_none, place, "forward")

    @staticmethod
    def backward(ctx, grad):
        return Shortage.tried(grad, ctx.finds_none, ctx.place, "backward"), None, None

    @staticmethod
    def tried(tensor, finds_none, place, here):
        if place == here and finds_none(tensor.shape[1]):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return tensor.view_as(tensor)


class Memory:
    """Is too small for rows of more than ``tokens`` tokens, or once, for the ``nth`` row; in process 1, or in both."""

    def __init__(self, tokens=10**9, nth=0, place="forward", ranks=("1",)):
        self.tokens, self.nth, self.place, self.ranks = tokens, nth, place, ranks
        self.rows, self.struck = [], 0

    def watch(self, trainer: Any, module: Any) -> None:
        """Look at what comes out of a module of the model."""

        def layer(module, args, kwargs, output):
            if not torch.is_grad_enabled() or not trainer.is_in_train or torch._C._current_graph_task_id() != -1:
                return output
            hidden = output[0] if isinstance(output, tuple) else output
            hidden = Shortage.apply(hidden, self.finds_none, self.place)
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        module.register_forward_hook(layer, with_kwargs=True)

    def finds_none(self, tokens: int) -> bool:
        """Return whether a row is too long."""
        self.rows.append(tokens)
        is_short = os.environ.get("RANK") in self.ranks and (tokens > self.tokens or len(self.rows) == self.nth)
        self.struck += is_short
        return is_short


class Limit(TrainerCallback):
    """Gives a process so few bytes more than it has when a step begins; beyond them it gets "Cannot allocate memory".

    The C library gives back what is freed, so that the limit is met at the same place in every run.
    """

    M_MMAP_THRESHOLD = -3

    def __init__(self, spare: int, ranks: tuple[str, ...] = ("1",), step: int = 0):
        self.spare, self.ranks, self.step = spare, ranks, step

    def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Set the limit."""
        if state.global_step == self.step and os.environ.get("RANK") in self.ranks:
            libc = ctypes.CDLL(None)
            libc.mallopt(self.M_MMAP_THRESHOLD, 64 << 10)
            libc.malloc_trim(0)
            lines = Path("/proc/self/status").read_text().splitlines()
            has = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmData"))
            resource.setrlimit(resource.RLIMIT_DATA, (has + self.spare, resource.RLIM_INFINITY))

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Lift the limit: what is saved after a step is no matter of these tests."""
        self.lift()

    @staticmethod
    def lift() -> None:
        """Lift the limit."""
        resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
