"""Layers that keep less for the backward pass, and pass less often over memory.

recipe.py     tensors that are made again instead of being kept
norm.py       RMSNorm
gated.py      act(gate) * up
linear.py     a linear layer with its LoRA branch
forwards.py   which module of transformers and PEFT each of them stands in for, found by trying
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from .forwards import Forward, linear_forward, lora_forward, mlp_forward, norm_forward


@dataclass(frozen=True)
class MemorySavingLayers:
    """The modules of one model that have a leaner forward, and the means to use it for a while.

    Outside of :meth:`applied` the model is as it was: what is saved, merged, copied, compiled or generated from has
    nothing of ours in it. Inside, forwards of instances are replaced; parameters, classes and hooks are not. Forward
    and backward pass of a step belong into the same ``applied``: checkpointed layers run forward again in between.

    Attributes:
        forwards: What to call instead of each module's own forward.
        counts: Number of modules by kind (``norm``, ``mlp``, ``lora``, ``linear``); empty where nothing fits.
    """

    forwards: dict[nn.Module, Forward] = field(repr=False)
    counts: Counter[str]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Use the lean forwards while inside; modules whose forward somebody else has replaced are left alone."""
        replaced = [module for module in self.forwards if "forward" not in vars(module)]
        for module in replaced:
            vars(module)["forward"] = self.forwards[module]
        try:
            yield
        finally:
            for module in replaced:
                del vars(module)["forward"]


def memory_saving_layers(model: nn.Module) -> MemorySavingLayers:
    """Find the modules whose forward can be replaced by one that keeps less for the backward pass.

    A module is taken for what it is (its class's kind and what it has in it), and only if ours gives the same values
    and gradients on random input; the model's name plays no part. Values are those of the module up to the rounding of
    its dtype. Takes about a millisecond a module.

    Args:
        model: Any model, with or without an adapter; it stays as it is.

    Returns:
        What to enter around each training step; nothing in it for a model in float64, which is there to compare with.
    """
    if all(p.dtype == torch.float64 for p in model.parameters() if p.is_floating_point()):
        return MemorySavingLayers({}, Counter())
    kinds = {"norm": norm_forward, "mlp": mlp_forward, "lora": lora_forward, "linear": linear_forward}
    forwards: dict[nn.Module, Forward] = {}
    counts: Counter[str] = Counter()
    adapted = [module for module in model.modules() if hasattr(module, "base_layer")]
    # The base and the adapter of such a layer are called by it, or not at all.
    inside = {part for module in adapted for part in module.modules() if part is not module}
    for module in model.modules():
        if module in inside or "forward" in vars(module):
            continue
        for kind, forward_of in kinds.items():
            if (forward := forward_of(module)) is not None:
                forwards[module] = forward
                counts[kind] += 1
    return MemorySavingLayers(forwards, counts)
