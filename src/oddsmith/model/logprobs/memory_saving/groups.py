"""Linear layers that share their input, computed as one operation: q, k and v, gate and up.

A model calls them one after the other. The first that is called with an input computes all of them and keeps the
others' results until they are called with the same tensor:

    q_proj(x)   computes q, k and v of x; returns q
    k_proj(x)   returns k
    v_proj(x)   returns v

So the model's code, and hooks on the layers, stay as they are. A group whose layers turn out to have different inputs,
or are not all called, is given up; results are right in that step, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from .conditions import branch_of, product_dtype
from .forwards import (
    Forward,
    forward_linear,
    forward_lora,
    forward_lora_4bit,
    linear_weights,
    lora_weights,
)
from .linear import Weights, add_branches, linears

# Names of such layers in one module
NAMES = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("gate_proj", "up_proj"))


class LinearGroup:
    """Layers of one module whose forwards are ours; see the module."""

    def __init__(self, layers: list[Any], forwards: Mapping[nn.Module, Forward]):
        """``forwards`` has those of the layers alone."""
        self._layers = layers
        self._alone = [forwards[layer] for layer in layers]
        self._is_group = True
        self._input: tuple[Tensor, int] | None = None  # with its version
        self._results: dict[int, Tensor] = {}  # by the layer's place

    @property
    def forwards(self) -> dict[nn.Module, Forward]:
        """The forwards of the layers as a group."""
        return {layer: partial(self._forward, place) for place, layer in enumerate(self._layers)}

    def forget(self) -> None:
        """Drop results that nobody has asked for, as those of a pass that failed."""
        self._input, self._results = None, {}

    def settle(self) -> None:
        """Give the group up if some of its layers have not been called."""
        self._is_group &= not self._results
        self.forget()

    def _forward(self, place: int, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not self._is_group or args or kwargs or x.is_inference():  # which has no version
            return self._alone[place](x, *args, **kwargs)
        if self._input is None or self._input[0] is not x or self._input[1] != x._version or place not in self._results:
            self.settle()
            found = self._compute(x) if self._is_group else None
            if found is None:
                return self._alone[place](x)
            self._input, self._results = (x, x._version), dict(enumerate(found))
        y = self._results.pop(place)
        if not self._results:
            self.forget()
        return y

    def _compute(self, x: Tensor) -> list[Tensor] | None:
        """Return the results of all layers; ``None`` where one of them has to compute alone."""
        kinds = {_kind(forward) for forward in self._alone}
        if kinds == {forward_lora_4bit}:
            branches = [branch for layer in self._layers if (branch := branch_of(layer)) is not None]
            tensors = [tensor for branch in branches for tensor in branch[:2]]
            if len(branches) < len(self._layers) or product_dtype(x, *tensors) != x.dtype:
                return None
            return add_branches([layer.base_layer(x) for layer in self._layers], x, branches)
        weights: list[Weights] = []
        for layer, forward in zip(self._layers, self._alone, strict=True):
            found = _WEIGHTS_OF[_kind(forward)](layer)
            if found is None:
                return None
            weights.append(found)
        dtype = product_dtype(x, *(tensor for layer in weights for tensor in layer.tensors))
        return None if dtype is None else linears(x, weights, dtype)


_WEIGHTS_OF: dict[Any, Callable[[Any], Weights | None]] = {forward_linear: linear_weights, forward_lora: lora_weights}


def _kind(forward: Any) -> Any:
    """Return which of our forwards this is, for one layer."""
    return forward.func


def linear_groups(model: nn.Module, forwards: Mapping[nn.Module, Forward]) -> Iterator[LinearGroup]:
    """Find layers of a model that share their input by their names; ``forwards`` are those of its layers alone."""
    for module in model.modules():
        for names in NAMES:
            layers: list[Any] = [module._modules[name] for name in names if module._modules.get(name) in forwards]
            kinds = {_kind(forwards[layer]) for layer in layers}
            together = kinds <= set(_WEIGHTS_OF) or kinds == {forward_lora_4bit}
            widths = {getattr(layer, "in_features", None) for layer in layers}
            if len(layers) > 1 and together and len(widths) == 1:
                yield LinearGroup(layers, forwards)
