"""Find linear layers that an adapter on every linear layer has to leave out.

An adapter works where its layer is called with a tensor and returns one. Mixers such as Mamba's hand weights of some
layers to a kernel instead (``kernel(x, self.out_proj.weight)``): an adapter there is trained by nothing, or only where
the kernel is missing, and would change the merged model all the same. Routers of experts return several values.
"""

from __future__ import annotations

import inspect
import re
from functools import cache
from typing import Any

import torch
from torch import nn


def bypassed_layers(model: nn.Module) -> list[str]:
    """Return the paths of linear layers whose weights are read directly, or that return more than one tensor."""
    found = []
    for path, module in model.named_modules():
        kind: Any = type(module)
        for name, child in module.named_children():
            if isinstance(child, nn.Linear) and (_returns_more(child) or _reads_weight(kind, name)):
                found.append(f"{path}.{name}" if path else name)
    return found


def _returns_more(layer: nn.Linear) -> bool:
    """Return whether a layer with a ``forward`` of its own, as transformers has some, returns no single tensor."""
    kind = type(layer)
    if kind.forward is nn.Linear.forward or not kind.__module__.startswith("transformers.models."):
        return False
    with torch.no_grad():
        return not isinstance(layer.forward(layer.weight.new_zeros(1, layer.in_features)), torch.Tensor)


@cache
def _reads_weight(kind: type[nn.Module], name: str) -> bool:
    """Return whether the code of a class hands the weight of a layer on; its type and its device do not count.

    PEFT has an adapter of its own for torch's attention, which does that.
    """
    if kind.__module__.startswith("torch."):
        return False
    try:
        source = inspect.getsource(kind)
    except (OSError, TypeError):
        return False
    return re.search(rf"(?<!isinstance\()\bself\.{re.escape(name)}\.weight\s*[,@)]", source) is not None
