"""Let memory run out in a layer of a real training; the error is simulated, all that follows is real."""

import os
from typing import Any

import torch


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
