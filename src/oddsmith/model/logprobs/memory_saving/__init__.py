"""Layers that save less for the backward pass, and read and write memory less often.

elementwise.py  RMSNorm, act(gate) * up, rotary embedding: kernels of ``../kernels`` on a GPU
linear.py       linear layers with LoRA branches, several over one input as one operation
recomputed.py   recomputing instead of saving
conditions.py   when a module may run them, checked at each call
forwards.py     which module of transformers and PEFT each operation can replace, found by trying
groups.py       q, k and v, gate and up: layers that share their input
rotary.py       the function of a model's code that rotates queries and keys
token_rows.py   the same for a frozen embedding of which PEFT trains some rows
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from .forwards import Forward, linear_forward, lora_forward, mlp_forward, norm_forward
from .groups import LinearGroup, linear_groups
from .rotary import NAME, Function, rotary_functions
from .token_rows import token_rows_forward


@dataclass(frozen=True)
class MemorySavingLayers:
    """The modules of one model that have a memory-saving forward, and a way to use it for a while.

    Outside of :meth:`applied` the model is unchanged: it can be saved, merged, copied, compiled and generated from.
    Inside, forwards of instances are replaced, and the function that rotates queries and keys; parameters, classes and
    hooks are not. Forward and backward pass of a step belong into the same ``applied``: checkpointed layers run forward
    again in the backward pass.
    """

    forwards: dict[nn.Module, Forward] = field(repr=False)
    counts: Counter[str]  # modules by kind (``norm``, ``mlp``, ``lora``, ``linear``, ``tokens``)
    groups: list[LinearGroup] = field(default_factory=list, repr=False)
    functions: list[Function] = field(default_factory=list, repr=False)  # that rotate queries and keys

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Use the memory-saving forwards while inside, except in modules with a forward replaced by other code."""
        replaced = [module for module in self.forwards if "forward" not in vars(module)]
        functions = [function for function in self.functions if function.namespace[NAME] is function.own]
        for module in replaced:
            vars(module)["forward"] = self.forwards[module]
        for function in functions:
            function.namespace[NAME] = function.ours
        try:
            yield
            for group in self.groups:
                group.settle()
        finally:
            for module in replaced:
                del vars(module)["forward"]
            for function in functions:
                function.namespace[NAME] = function.own
            for group in self.groups:
                group.forget()


def memory_saving_layers(model: nn.Module) -> MemorySavingLayers:
    """Find the modules of a model that have a memory-saving forward.

    A module qualifies by its class's kind and its contents, and only if ours gives the same values and gradients on
    random input, up to the rounding of its dtype; the model's name plays no part. This takes about a millisecond a
    module. A float64 model is there to compare with and keeps its own forwards.
    """
    if all(p.dtype == torch.float64 for p in model.parameters() if p.is_floating_point()):
        return MemorySavingLayers({}, Counter())
    kinds = {"norm": norm_forward, "mlp": mlp_forward, "lora": lora_forward, "linear": linear_forward}
    kinds["tokens"] = token_rows_forward
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
    groups = list(linear_groups(model, forwards))
    for group in groups:
        forwards |= group.forwards
    return MemorySavingLayers(forwards, counts, groups, list(rotary_functions(model)))
