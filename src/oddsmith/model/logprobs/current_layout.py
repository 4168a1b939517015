"""The layout of the packed row that a model computes at the moment.

The layers that need it are called by the code of a model, and many models pass no keywords on to them. So it is kept
here: set before a forward pass, and set again when the backward pass of that row begins, for checkpointed layers run
forward again in it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...batching.forest import ForestLayout
from ...errors import ModelError

_current: ForestLayout | None = None


def set_layout(layout: ForestLayout | None) -> None:
    """Set the layout that a model computes from here on."""
    global _current
    _current = layout


def current_layout(tokens: int) -> ForestLayout:
    """Return the layout of a row of so many tokens; ``ModelError`` where the model computes another row, or none."""
    if _current is None or len(_current.depth_T) != tokens:
        raise ModelError("this layer does not compute a packed row")
    return _current


def resumed_in_backward(hidden: Tensor, layout: ForestLayout) -> Tensor:
    """Return the same values; their backward pass, the first of the row's, sets the layout."""
    return _Resumed.apply(hidden, layout)


class _Resumed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, layout: ForestLayout) -> Tensor:
        ctx.layout = layout
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, d_hidden: Tensor) -> tuple[Tensor, None]:
        set_layout(ctx.layout)
        return d_hidden, None
