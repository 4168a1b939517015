"""Whole models with the kernels of their layers, run by Triton's interpreter, against the models themselves."""

from contextlib import ExitStack, contextmanager, nullcontext
from unittest import mock

import pytest
import torch

pytest.importorskip("triton", reason="Triton is there on Linux alone")

from oddsmith.model.logprobs import kernels
from oddsmith.model.logprobs.kernels import gated_triton, norm_triton, rotary_triton
from oddsmith.model.logprobs.memory_saving import elementwise, memory_saving_layers, rotary
from tests.equivalence.test_memory_saving import IDS, architecture, assert_equal_steps, distance, step, with_adapter

from .interpreter import interpreted

OPERATORS = {
    norm_triton: ("norm", "norm_again", "norm_backward"),
    gated_triton: ("gated", "gated_backward"),
    rotary_triton: ("rotary", "rotary_backward"),
}


@contextmanager
def kernels_run():
    """Run the kernels on tensors of the CPU, as on a GPU, and note the names of those that have run.

    Layers are looked for before: their trials are in bf16, of which the interpreter makes nothing sensible.
    """
    names = set()

    def noting(name, kernel):
        return lambda *args: names.add(name) or kernel(*args)

    library = torch.library.Library("oddsmith", "IMPL")
    for module, operators in OPERATORS.items():
        for name in operators:
            library.impl(name, noting(name, getattr(module, name)), "CPU")
    with ExitStack() as stack:
        stack.callback(library._destroy)
        for module in (kernels, elementwise, rotary):
            stack.enter_context(mock.patch.object(module, "kernels_take", return_value=True))
        stack.enter_context(interpreted())
        yield names


ALL = {name for names in OPERATORS.values() for name in names}


ROTATIONS = {"rotary", "rotary_backward"}
NOT_RUN = {
    "qwen3": set(),  # norms of queries and keys
    "gemma2": set(),  # 1 + weight, GELU
    "phi3": set(),  # gate and up in one; the first half of the channels rotates
    "olmo2": ROTATIONS | {"norm_again"},  # cast(w * x), behind the linear layers
    "cohere2": ROTATIONS | {"norm", "norm_again", "norm_backward"},
}
IN_EVERY_RUN = {("qwen3", True), ("gemma2", False), ("phi3", True), ("olmo2", False)}


@pytest.mark.parametrize(
    ("name", "adapter"),
    [
        pytest.param(name, adapter, marks=[] if (name, adapter) in IN_EVERY_RUN else pytest.mark.slow)
        for name in NOT_RUN
        for adapter in (True, False)
    ],
)
def test_steps_of_whole_models(name, adapter):
    model = architecture(name).train()
    model = with_adapter(model) if adapter else model
    expected, layers = step(model), memory_saving_layers(model)
    with kernels_run() as names:
        assert_equal_steps(step(model, layers=layers), expected)
    assert names == ALL - NOT_RUN[name]


@pytest.mark.parametrize("reentrant", [pytest.param(True, marks=pytest.mark.slow), False])
def test_checkpointed_layers(reentrant):
    model = with_adapter(architecture("llama"))
    expected = step(model)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    layers = memory_saving_layers(model)
    with kernels_run() as names:
        assert_equal_steps(step(model, layers=layers), expected)
    assert names == ALL


@pytest.mark.parametrize("adapter", [pytest.param(True, marks=pytest.mark.slow), False], ids=["LoRA", "full"])
def test_in_half_precision_as_near_to_float32_as_the_model_itself(adapter):
    """A half-precision base with float32 adapters; float32 weights without. float16: the interpreter knows no bf16."""
    exact = architecture("llama").half().float().train()
    model = architecture("llama").half().to(torch.float16 if adapter else torch.float32).train()
    if adapter:
        exact, model = with_adapter(exact), with_adapter(model)

    def half_step(layers=None):
        model.zero_grad()
        with layers.applied() if layers else nullcontext():
            with torch.autocast("cpu", torch.float16):
                logits = model(IDS, use_cache=False).logits.float()
            torch.nn.functional.cross_entropy(logits[0, :-1], IDS[0, 1:], reduction="sum").backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    expected, own, layers = step(exact), half_step(), memory_saving_layers(model)
    with kernels_run() as names:
        found = half_step(layers)
    assert names == ALL
    assert own.keys() == found.keys()
    for name, gradient in found.items():
        assert gradient.dtype == own[name].dtype
        assert distance(gradient, expected[name]) <= 2 * distance(own[name], expected[name]) + 1e-3, name
