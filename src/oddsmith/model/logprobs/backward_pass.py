"""What the backward functions of our autograd Functions have in common."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def exact_backward(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Run a backward function without autocast, and without a graph for second derivatives.

    Autocast is for forward passes, and is off in most backward passes; where ``backward()`` is called inside of it, as
    the check of a model's path does, it would round products of what was computed in float32 on purpose.
    """

    @once_differentiable
    @wraps(backward)
    def run(ctx: Any, *grads: Any) -> Any:
        device = next((grad.device.type for grad in grads if isinstance(grad, Tensor)), "cpu")
        if not torch.is_autocast_enabled(device):
            return backward(ctx, *grads)
        with torch.autocast(device, enabled=False):
            return backward(ctx, *grads)

    return run
