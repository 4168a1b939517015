"""Keep the processes of FSDP2 in step where one of them runs out of memory within a forward or backward pass.

Each layer gathers its weights before its forward and its backward pass, and scatters its gradients after it. All
processes do so in the same order, and wait for each other: a process that gives up in the middle leaves the others
waiting for ever. So it goes through what is left of the micro-batch without computing anything: it gathers and
scatters as the others do, with gradients of 0. Then all of them hear of it (``shared_budget.py``), drop the gradients
of the step, and compute it again.

    forward pass    enter root, enter 0, leave 0, enter 1, | leave 1, enter 2, leave 2, leave root
    backward pass   root, 2, 1, 0                          memory ran out in layer 1: what is right of the bar is left

The order of the layers is that of the last micro-batch that was computed, of the first one that of the modules. This
module names private attributes of torch's FSDP2; ``is_possible`` says whether the installed version has them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.utils._pytree import tree_leaves


class Event(NamedTuple):
    """A module that shards its weights is entered or left in a forward pass."""

    module: Any
    is_entered: bool


class FsdpPasses:
    """Record which modules the forward pass of a micro-batch has entered and left, and go through what is left of it.

    Args:
        model: The root of FSDP2.
    """

    def __init__(self, model: Any):
        self._model = model
        self._done: list[Event] = []
        self._order = [Event(model, True)]
        for module in _sharded_modules(model):
            if module is not model:
                self._order += [Event(module, True), Event(module, False)]
            # After those of FSDP, which gather and drop the weights.
            module.register_forward_pre_hook(self._enter, with_kwargs=True)
            module.register_forward_hook(self._leave)
        self._order.append(Event(model, False))
        self._without_gradient: set[Any] = set()  # modules whose inputs need no gradient: scattered at the very end

    def is_of(self, model: nn.Module) -> bool:
        """Return whether these are the passes of a model."""
        return model is self._model

    @staticmethod
    def is_possible(model: nn.Module) -> bool:
        """Return whether a model is the root of FSDP2, in a version of torch that can go on after an error."""
        return isinstance(model, FSDPModule) and hasattr(FSDPModule, "reset_iter_state")

    def _enter(self, module: Any, args: Any, kwargs: Any) -> None:
        if torch.is_grad_enabled() and torch._C._current_graph_task_id() == -1:  # no second forward pass in a backward
            if module is self._model:
                self._done = []
            self._done.append(Event(module, True))
            if any(isinstance(leaf, torch.Tensor) and leaf.requires_grad for leaf in tree_leaves((args, kwargs))):
                self._without_gradient.discard(module)
            else:
                self._without_gradient.add(module)

    def _leave(self, module: Any, args: Any, output: Any) -> None:
        if torch.is_grad_enabled() and torch._C._current_graph_task_id() == -1:
            self._done.append(Event(module, False))

    def begin(self) -> None:
        """Begin a micro-batch."""
        if self._done and self._done[-1] == Event(self._model, False):
            self._order = self._done
        self._done = []

    def finish(self) -> None:
        """Gather and scatter what is left of a micro-batch in which memory ran out."""
        with torch.no_grad():
            left = self._order[len(self._done) :]
            states = [event.module._get_fsdp_state() for event in left]
            for number, (module, is_entered) in enumerate(left):
                state = states[number]
                if is_entered and state._training_state.name != "FORWARD":
                    state._pre_forward(module, (), {})
                elif not is_entered and state not in states[number + 1 :]:  # modules may share one: norm and head
                    state._post_forward(module, (), None)
                    state._modules_to_run_forward.clear()
            self._finish_backward()
        self._done = []

    def _finish_backward(self) -> None:
        used = {event.module for event in self._order}
        groups = [group for module in used for group in module._get_fsdp_state()._fsdp_param_groups]
        before = [group.reduce_scatter_unused_params for group in groups]
        for group in groups:
            group.reduce_scatter_unused_params = True
        root = self._model._get_fsdp_state()
        root._state_ctx.post_backward_final_callback_queued = True  # it is called below
        modules = [event.module for event in reversed(self._order) if not event.is_entered]
        # What comes before a module that has begun has nothing left to do but what is done at the very end: a root
        # whose own output is not used is never told that the backward pass has reached it, and would gather once more.
        begun = [number for number, module in enumerate(modules) if _has_begun_backward(module)]
        for module in modules[begun[-1] if begun else 0 :]:
            state = module._get_fsdp_state()
            left = [one for one in state._fsdp_param_groups if one._training_state.name != "POST_BACKWARD"]
            if left:
                state._pre_backward(None)
            if module is not self._model and not self._without_gradient.issuperset(state._modules):
                for group in reversed(left):
                    group.post_backward()
        root._root_post_backward_final_callback()
        for group, value in zip(groups, before, strict=True):
            group.reduce_scatter_unused_params = value

    def reset(self) -> None:
        """Drop the gradients of all micro-batches of the step, in every process."""
        self._model.reset_iter_state()
        for module in _sharded_modules(self._model):
            for group in module._get_fsdp_state()._fsdp_param_groups:
                for parameter in group.fsdp_params:
                    parameter.unsharded_accumulated_grad = None
                    if hasattr(parameter, "_unsharded_param"):
                        parameter._unsharded_param.grad = None


def _has_begun_backward(module: Any) -> bool:
    groups = module._get_fsdp_state()._fsdp_param_groups
    return any(group._training_state.name in ("PRE_BACKWARD", "POST_BACKWARD") for group in groups)


def _sharded_modules(model: nn.Module) -> Iterator[Any]:
    return (module for module in model.modules() if isinstance(module, FSDPModule))
