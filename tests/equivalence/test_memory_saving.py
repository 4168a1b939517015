"""Memory-saving layers against the modules they replace: values, gradients, what is saved, what happens to a model."""

import copy
import itertools
import pickle
from contextlib import nullcontext
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig
from transformers.activations import ACT2FN
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm

from oddsmith.model.loading.setup import disable_dropout
from oddsmith.model.logprobs.kernels.gated import Activation
from oddsmith.model.logprobs.kernels.norm import Scale
from oddsmith.model.logprobs.memory_saving import memory_saving_layers, rotary
from oddsmith.model.logprobs.memory_saving.elementwise import gated_product, rms_norm
from oddsmith.model.logprobs.memory_saving.forwards import mlp_forward, norm_forward
from oddsmith.model.logprobs.memory_saving.linear import Branch, Weights, _Linears, add_branches, linears
from oddsmith.model.logprobs.memory_saving.recomputed import Recomputed, mark_recomputable, what_to_save
from tests.tiny import SMALL, tiny_model

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
# Modules of a model of two layers that get a memory-saving forward: norms and MLPs.
ARCHITECTURES = {
    "llama": (5, 2), "mistral": (5, 2), "qwen2": (5, 2), "qwen3": (9, 2), "gemma": (5, 2), "gemma2": (9, 2),
    "gemma3_text": (13, 2), "phi3": (5, 2), "olmo2": (9, 2), "granite": (5, 2), "glm4": (9, 2), "smollm3": (5, 2),
    "cohere2": (0, 2),  # a norm with a mean
    "starcoder2": (0, 0),  # LayerNorm, and an MLP without a gate
    "gpt2": (0, 0),  # and no nn.Linear but the head
}  # fmt: skip
IDS = torch.arange(3, 27)[None]
shapes = st.lists(st.integers(1, 5), min_size=1, max_size=3)
widths = st.integers(1, 40)


def architecture(name, dtype=torch.float32, **settings):
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **SMALL | {"initializer_range": 0.2} | settings)
    return AutoModelForCausalLM.from_config(config, dtype=dtype)


def with_adapter(model, **settings):
    """A LoRA on every linear layer that has been trained a little."""
    torch.manual_seed(0)
    settings = {"r": 4, "target_modules": "all-linear", **settings}
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model.train()


def random(*shapes, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def results(function, inputs, grad):
    """A function's value, and the gradients of its inputs."""
    y = function(*inputs)
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    return y.detach(), *torch.autograd.grad(y, wanted, grad.to(y.dtype))


def step(model, *, bf16=False, layers=None):
    """Logits and all gradients of one training step."""
    model.zero_grad()
    with layers.applied() if layers else nullcontext():
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(IDS, use_cache=False).logits.float()
        F.cross_entropy(logits[0, :-1], IDS[0, 1:], reduction="sum").backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"logits": logits.detach(), **found}


def assert_equal_steps(found, expected, tolerance=1e-5):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert distance(found[name], tensor) <= tolerance, name


def distance(found, expected):
    """Norm of the difference of two tensors, relative to the norm of the expected one."""
    return ((found.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-3)).item()


def saved_bytes(model, function):
    """Bytes that autograd saves of a forward pass beside the parameters, each storage counted once."""
    sizes, parameters = {}, {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = function()  # kept alive, so that no address is used twice
    assert y.requires_grad
    return sum(sizes.values())


X = random((3, 8), dtype=torch.float32)[0]


# ---- Operations


NORMS = {Scale.AFTER_CAST: LlamaRMSNorm, Scale.BEFORE_CAST: Olmo2RMSNorm, Scale.ONE_PLUS: Gemma2RMSNorm}


@pytest.mark.parametrize("scale", Scale)
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@settings(max_examples=8)
@given(shape=shapes, width=st.integers(8, 40), seed=st.integers(0, 99))  # narrower gradients nearly cancel
def test_rms_norm(scale, dtype, weight_dtype, shape, width, seed):
    """Values to the last bit; gradients as near to float32's as those of the module."""
    module = NORMS[scale](width, eps=1e-5).to(weight_dtype)
    x, weight, grad = random((*shape, width), (width,), (*shape, width), seed=seed)
    module.weight.data.copy_(weight)
    x = x.detach().to(dtype).requires_grad_()
    expected = results(lambda x, _: module(x), (x, module.weight), grad)
    found = results(lambda x, weight: rms_norm(x, weight, 1e-5, scale), (x, module.weight), grad)
    assert [t.dtype for t in found] == [t.dtype for t in expected]
    assert torch.equal(found[0], expected[0])
    exact = NORMS[scale](width, eps=1e-5)
    exact.weight.data.copy_(module.weight)
    exact_results = results(lambda x, _: exact(x), (x.detach().float().requires_grad_(), exact.weight), grad)
    rounding = max(torch.finfo(t).eps for t in (dtype, weight_dtype))
    for ours, theirs in zip(found[1:], exact_results[1:], strict=True):
        assert distance(ours, theirs) <= max(1e-5, 2 * rounding)


def assert_near(function, reference, inputs, grad):
    """Compare values and gradients."""
    for found, expected in zip(results(function, inputs, grad), results(reference, inputs, grad), strict=True):
        assert found.dtype == expected.dtype
        assert distance(found, expected) <= TOLERANCE.get(found.dtype, 4 * torch.finfo(found.dtype).eps)


@pytest.mark.parametrize("activation", Activation)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@settings(max_examples=8)
@given(shape=shapes, width=widths, seed=st.integers(0, 99))
def test_gated_product(activation, dtype, shape, width, seed):
    gate, up, grad = random(*[(*shape, width)] * 3, seed=seed, dtype=dtype)
    assert_near(lambda g, u: gated_product(g, u, activation), lambda g, u: activation.of(g) * u, (gate, up), grad)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@settings(max_examples=15)
@given(
    shape=shapes,
    inner=widths,
    outer=widths,
    rank=st.integers(0, 8),
    frozen=st.sets(st.sampled_from(["x", "base", "bias", "lora_A", "lora_B"])),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_linear(dtype, shape, inner, outer, rank, frozen, bias, seed):
    """Any part of it frozen, with and without bias and adapter."""
    tensors = random((*shape, inner), (outer, inner), (outer,), (rank, inner), (outer, rank), seed=seed, dtype=dtype)
    named = dict(zip(["x", "base", "bias", "lora_A", "lora_B"], tensors, strict=True))
    for name in frozen if len(frozen) < 4 else ():
        named[name].requires_grad_(False)
    if not bias:
        del named["bias"]
    if not rank:
        del named["lora_A"], named["lora_B"]
    if not any(tensor.requires_grad for tensor in named.values()):
        return

    def ours(*inputs):
        weights = dict(zip(named, inputs, strict=True))
        branch = Branch(weights["lora_A"], weights["lora_B"], 0.7) if rank else None
        return linears(weights["x"], [Weights(weights["base"], weights.get("bias"), branch)], dtype)[0]

    def plain(*inputs):
        weights = dict(zip(named, inputs, strict=True))
        y = F.linear(weights["x"], weights["base"], weights.get("bias"))
        return y + 0.7 * F.linear(F.linear(weights["x"], weights["lora_A"]), weights["lora_B"]) if rank else y

    (grad,) = random((*shape, outer), seed=seed + 1, dtype=dtype)
    assert_near(ours, plain, tuple(named.values()), grad)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@settings(max_examples=10)
@given(shape=shapes, inner=widths, outer=widths, rank=st.integers(1, 8), seed=st.integers(0, 99))
def test_branch_beside_a_product_of_another_library(dtype, shape, inner, outer, rank, seed):
    x, y, A, B, grad = random(
        (*shape, inner), (*shape, outer), (rank, inner), (outer, rank), (*shape, outer), seed=seed, dtype=dtype
    )
    assert_near(
        lambda x, y, A, B: add_branches([2 * y], x, [Branch(A, B, 0.7)])[0],
        lambda x, y, A, B: 2 * y + 0.7 * F.linear(F.linear(x, A), B),
        (x, y, A, B),
        grad,
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@settings(max_examples=15, deadline=None)
@given(
    shape=shapes,
    inner=widths,
    layers=st.lists(st.tuples(widths, st.integers(0, 4), st.booleans()), min_size=2, max_size=3),
    unused=st.integers(0, 3),
    frozen_x=st.booleans(),
    seed=st.integers(0, 99),
)
def test_linear_layers_over_one_input(dtype, shape, inner, layers, unused, frozen_x, seed):
    """Layers of other widths, ranks and scalings, some without bias or branch; the result of one may not be used."""
    (x,) = random((*shape, inner), seed=seed, dtype=dtype)
    x.requires_grad_(not frozen_x)
    together = []
    for place, (outer, rank, bias) in enumerate(layers):
        base, b, A, B = random((outer, inner), (outer,), (rank, inner), (outer, rank), seed=seed + place, dtype=dtype)
        branch = Branch(A, B, 0.5 + place) if rank else None
        together.append(Weights(base, b if bias else None, branch))
    used = [place for place in range(len(layers)) if place != unused]
    grads = random(*[(*shape, layers[place][0]) for place in used], seed=seed + 9, dtype=dtype)
    wanted = [t for place in used for t in together[place].tensors if t is not None] + ([] if frozen_x else [x])

    def found(ys):
        ys = [ys[place] for place in used]
        return *(y.detach() for y in ys), *torch.autograd.grad(ys, wanted, grads)

    plain = []
    for weights in together:
        y = F.linear(x, weights.base, weights.bias)
        if weights.branch is not None:
            A, B, scaling = weights.branch[:3]
            y = y + scaling * F.linear(F.linear(x, A), B)
        plain.append(y)
    for ours, theirs in zip(found(linears(x, together, dtype)), found(plain), strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        assert distance(ours, theirs) <= TOLERANCE.get(dtype, 0.03)


PRODUCTS = {
    "norm": lambda x, w: rms_norm(x, w[0], 1e-5, Scale.AFTER_CAST),
    "gated product": lambda x, w: gated_product(x @ w, x, Activation.SILU),
    "linear": lambda x, w: linears(x, [Weights(w)], torch.float32)[0],
    "LoRA": lambda x, w: linears(x, [Weights(w, None, Branch(w[:2], w[:, :2], 0.7))], torch.float32)[0],
    "branch": lambda x, w: add_branches([2 * x], x, [Branch(w[:2], w[:, :2], 0.7)])[0],
}


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4)], ids=["2-D", "3-D"])
@pytest.mark.parametrize("name", PRODUCTS)
def test_the_result_may_be_written_to(name, shape):
    """Models do: OLMo, DBRX and MPT clamp queries, keys and values in place. A view of a Function forbids it."""
    x, weight, grad = random(shape, (4, 4), shape, dtype=torch.float32)
    expected = results(lambda x, w: PRODUCTS[name](x, w).clamp(-0.5, 0.5), (x, weight), grad)
    found = results(lambda x, w: PRODUCTS[name](x, w).clamp_(-0.5, 0.5), (x, weight), grad)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_norms_and_products_in_a_backward_pass_inside_of_autocast():
    """It rounds products there, unless it is told not to."""
    x, weight, base, grad = random((5, 40), (40,), (30, 40), (5, 30), dtype=torch.float32)

    def gradients(autocast):
        (y,) = linears(rms_norm(x, weight, 1e-5, Scale.AFTER_CAST), [Weights(base)], torch.float32)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return torch.autograd.grad(y, (x, weight, base), grad)

    assert all(torch.equal(*pair) for pair in zip(gradients(True), gradients(False), strict=True))


# ---- Recomputed tensors


def test_a_tensor_that_several_layers_read_is_recomputed_once_and_then_dropped():
    made = []
    x = torch.randn(2, 3)

    def make(dtype, x):
        made.append(x)
        return (2 * x).to(dtype)

    y = 2 * x
    mark_recomputable(y, Recomputed(make), x)
    (recomputed, sources), (same, _) = what_to_save(y), what_to_save(y)
    assert recomputed is same
    assert sources[0].data_ptr() == x.data_ptr()
    first, second = recomputed.read(x.dtype, x), recomputed.read(x.dtype, x)
    assert first is second
    assert torch.equal(first, y)
    assert len(made) == 1
    assert recomputed.read(x.dtype, x) is not first  # a second backward pass: the last reader dropped it


def test_an_mlp_computes_its_activation_once_in_each_direction(monkeypatch):
    computed, silu = [], F.silu
    monkeypatch.setattr(F, "silu", lambda gate: computed.append(gate) or silu(gate))
    gate, up, down = random((3, 6), (3, 6), (4, 6), dtype=torch.float32)
    (y,) = linears(gated_product(gate, up, Activation.SILU), [Weights(down)], torch.float32)
    assert len(computed) == 1
    y.sum().backward()
    assert len(computed) == 2


@pytest.mark.parametrize("which", ["the tensor", "a source"])
def test_a_tensor_that_was_written_to_is_saved_itself(which):
    x = torch.randn(2, 3)
    y = 2 * x
    mark_recomputable(y, Recomputed(lambda dtype, x: 2 * x), x)
    (y if which == "the tensor" else x).add_(1)
    recomputed, kept = what_to_save(y)
    assert recomputed is None
    assert kept[0].data_ptr() == y.data_ptr()


def test_a_second_backward_pass_over_the_same_graph():
    model = with_adapter(architecture("llama"))
    with memory_saving_layers(model).applied():
        loss = model(IDS, labels=IDS).loss
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        first = torch.autograd.grad(loss, parameters, retain_graph=True)
        second = torch.autograd.grad(loss, parameters)
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


# ---- Whole models


@pytest.mark.parametrize("adapter", [True, False])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_steps_of_whole_models(name, adapter):
    model = architecture(name)
    disable_dropout(model.train())
    model = with_adapter(model) if adapter else model
    layers = memory_saving_layers(model)
    norms, mlps = ARCHITECTURES[name]
    assert (layers.counts.get("norm", 0), layers.counts.get("mlp", 0)) == (norms, mlps)
    adapted = [module for module in model.modules() if isinstance(getattr(module, "base_layer", None), nn.Linear)]
    assert layers.counts.get("lora", 0) == len(adapted)
    assert_equal_steps(step(model, layers=layers), step(model))


@pytest.mark.parametrize("adapter", [True, False])
def test_a_model_that_writes_into_products(adapter):
    model = architecture("olmo", clip_qkv=0.5).train()
    model = with_adapter(model) if adapter else model
    assert_equal_steps(step(model, layers=memory_saving_layers(model)), step(model))


@pytest.mark.parametrize("adapter", [True, False])
@pytest.mark.parametrize("name", ["llama", "gemma2", "phi3", "olmo2"])
def test_in_bf16_as_near_to_float32_as_the_model_itself(name, adapter):
    """A bf16 base with float32 adapters; float32 weights without. Both under autocast, as in training."""
    exact = architecture(name).to(torch.bfloat16).float().train()
    model = copy.deepcopy(exact).to(torch.bfloat16 if adapter else torch.float32)
    if adapter:
        exact, model = with_adapter(exact), with_adapter(model)
    expected, own = step(exact), step(model, bf16=True)
    layers = step(model, bf16=True, layers=memory_saving_layers(model))
    assert own.keys() == layers.keys()

    def error(found):
        return sum((found[name] - exact_value).norm() ** 2 for name, exact_value in expected.items())

    assert all(layers[key].dtype == own[key].dtype for key in own)
    assert error(layers) ** 0.5 <= 1.25 * error(own) ** 0.5


@pytest.mark.parametrize("adapter", [True, False])
def test_less_than_half_is_saved(adapter):
    """Of wide layers, where activations weigh more than rounding up; under autocast, as in training."""
    settings = {"hidden_size": 64, "intermediate_size": 160, "head_dim": 16}
    model = architecture("llama", torch.bfloat16 if adapter else torch.float32, **settings).train()
    decoder = with_adapter(model).get_base_model().model if adapter else model.model
    layers = memory_saving_layers(decoder)

    def forward():
        with torch.autocast("cpu", torch.bfloat16):
            return decoder(torch.arange(256)[None]).last_hidden_state

    own = saved_bytes(decoder, forward)
    with layers.applied():
        assert saved_bytes(decoder, forward) <= 0.5 * own


def test_a_layer_saves_residuals_attention_and_gates():
    """And the inner products of LoRA and its weights in bf16, and one number a row of each norm; nothing else."""
    model = with_adapter(architecture("llama", torch.bfloat16, num_hidden_layers=3)).get_base_model().model
    tokens, hidden, heads, kv_heads, head, gates, rank = 128, 32, 4, 2, 8, 48, 4
    x = torch.randn(1, tokens, hidden, dtype=torch.bfloat16, requires_grad=True)
    saving = memory_saving_layers(model)

    def forward(layers):
        model.layers = layers
        with torch.autocast("cpu", torch.bfloat16), saving.applied():
            return model(inputs_embeds=x, use_cache=False).last_hidden_state

    layers = model.layers
    difference = saved_bytes(model, lambda: forward(layers[:3])) - saved_bytes(model, lambda: forward(layers[:2]))
    elements = 2 * hidden + 2 * heads * head + 2 * kv_heads * head + 2 * gates + 7 * rank
    in_float32 = 2 + heads  # of the two norms and of the attention
    of_branches = rank * (
        7 * hidden + 2 * gates + gates + 2 * heads * head + 2 * kv_heads * head
    )  # A's and B's in bf16
    assert difference <= tokens * (2 * elements + 4 * in_float32) + 2 * of_branches


def test_a_frozen_layer_does_not_save_its_input():
    layer = nn.Linear(8, 6).requires_grad_(False)
    assert saved_bytes(layer, lambda: linears(X, [Weights(layer.weight, layer.bias)], torch.float32)[0]) == 0


# ---- Conditions


def lora_layer(**settings):
    torch.manual_seed(0)
    model = get_peft_model(nn.ModuleDict({"up": nn.Linear(8, 6)}), LoraConfig(target_modules=["up"], r=2, **settings))
    layer = model.base_model.model["up"]
    with torch.no_grad():
        for parameter in (*layer.lora_A.parameters(), *layer.lora_B.parameters()):
            parameter.normal_()
    return model, layer


def ways(model, layer):
    """Put a layer into each state in which its output is not W x + s B A x."""
    model.add_adapter("other", LoraConfig(target_modules=["up"], r=3, init_lora_weights=False))
    yield "unchanged"
    layer.set_adapter("other")
    yield "another adapter"
    layer.set_adapter(["default", "other"])
    yield "two adapters"
    model.add_adapter("decomposed", LoraConfig(target_modules=["up"], r=2, use_dora=True, init_lora_weights=False))
    layer.set_adapter("decomposed")
    yield "an adapter of another kind"
    layer.set_adapter("default")
    with model.disable_adapter():
        yield "disabled"
    layer.merge()
    yield "merged"
    layer.unmerge()
    layer.lora_dropout["default"] = nn.Dropout(0.5)
    yield "dropout"
    layer.lora_dropout["default"] = nn.Identity()
    handle = layer.base_layer.register_forward_hook(lambda module, args, y: 2 * y)
    yield "a hook on the base"
    handle.remove()
    handle = layer.lora_B["default"].register_forward_pre_hook(lambda module, args: (3 * args[0],))
    yield "a hook on the branch"
    handle.remove()


def test_lora_layers_give_the_same_output_in_every_state():
    model, layer = lora_layer()
    layers = memory_saving_layers(model)
    assert layers.counts == {"lora": 1}
    model.train()
    for way in ways(model, layer):
        torch.manual_seed(1)
        expected = layer(X)
        with layers.applied():
            torch.manual_seed(1)
            assert torch.allclose(layer(X), expected, atol=1e-6), way


def rows_trained(model, adapter="default"):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(f"trainable_tokens_delta.{adapter}"):
                parameter.normal_()
    return model


def ways_of_rows(model, layer):
    """Put a layer with trained rows into each state in which its output is another."""
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=[3, 9]))
    rows_trained(model, "other")
    yield "unchanged"
    model.set_adapter("other")
    yield "another adapter"
    model.set_adapter("default")
    with model.disable_adapter():
        yield "disabled"
    layer.merge()
    yield "merged"
    layer.unmerge()


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_rows_of_an_embedding_give_the_same_output_in_every_state(name):
    model = rows_trained(with_adapter(architecture(name), trainable_token_indices=[5, 20, 263]))
    layer = model.get_input_embeddings().token_adapter
    layers = memory_saving_layers(model)
    assert layers.counts["tokens"] == 1
    ids = torch.tensor([[5, 6, 263], [263, 3, 9]])
    for way in ways_of_rows(model, layer):
        expected = model.get_input_embeddings()(ids)
        with layers.applied():
            assert torch.equal(model.get_input_embeddings()(ids), expected), way


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_gradients_of_rows_of_an_embedding(name, dtype):
    model = rows_trained(with_adapter(architecture(name, dtype), trainable_token_indices=[5, 20, 263]))
    layers, embedding = memory_saving_layers(model), model.get_input_embeddings()
    rows = embedding.token_adapter.trainable_tokens_delta["default"]
    assert rows.dtype == torch.float32
    ids = torch.tensor([[5, 6, 263, 5, 5], [263, 3, 9, 8, 7]])

    def gradient():
        y = embedding(ids).float()
        return torch.autograd.grad((y * torch.arange(y.numel()).view(y.shape)).sum(), rows)[0]

    expected = gradient()
    with layers.applied():
        assert torch.allclose(gradient(), expected, rtol=0.02 if dtype == torch.bfloat16 else 1e-6)
        assert saved_bytes(model, lambda: embedding(ids)) < 10_000


def test_the_row_of_the_token_to_pad_with_gets_no_gradient():
    model = with_adapter(architecture("llama"), trainable_token_indices=[0, 20])
    assert model.get_base_model().model.embed_tokens.original_module.padding_idx == 0
    rows = model.get_input_embeddings().token_adapter.trainable_tokens_delta["default"]
    with memory_saving_layers(model).applied():
        gradient = torch.autograd.grad(model.get_input_embeddings()(torch.tensor([0, 20])).sum(), rows)[0]
    assert gradient.abs().sum(1).tolist() == [0, 32]


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"lora_bias": True}, {"lora_dropout": 0.1}])
def test_other_kinds_of_adapters_are_left_alone(settings):
    model, _ = lora_layer(**settings)
    assert memory_saving_layers(model.train()).counts == {}


def test_an_unknown_forward_of_peft_is_left_alone(monkeypatch):
    model, layer = lora_layer()
    monkeypatch.setattr(type(layer), "forward", lambda self, x: 2 * self.base_layer(x))
    assert memory_saving_layers(model).counts == {}


def test_adapters_mixed_in_one_batch():
    model, layer = lora_layer()
    names = ["default", "__base__", "default"]
    layer.eval()
    expected = layer(X, adapter_names=names)
    with memory_saving_layers(model).applied():
        assert torch.equal(layer(X, adapter_names=names), expected)


@pytest.mark.parametrize("settings", [{"use_rslora": True}, {"init_lora_weights": "olora"}, {"bias": "all"}])
def test_adapters_with_another_start_or_scale(settings):
    model = with_adapter(tiny_model(attention_bias=True), **settings)
    layers = memory_saving_layers(model)
    assert layers.counts["lora"] == 14
    assert_equal_steps(step(model, layers=layers), step(model))


@pytest.mark.parametrize("name", sorted(ACT2FN))
def test_activations(name):
    """Known ones are recognised by their values; a module with another keeps its own forward."""
    if name == "xielu":
        pytest.skip("looks for a package of its own and says so")
    config = AutoConfig.for_model("llama", hidden_size=8, intermediate_size=12, num_attention_heads=2, hidden_act=name)
    known = "silu swish gelu gelu_fast gelu_new gelu_python gelu_pytorch_tanh gelu_python_tanh gelu_accurate quick_gelu"
    found = mlp_forward(module := LlamaMLP(config))
    assert (found is not None) == (name in known.split())
    if found is not None:
        assert_near(found, module, (X,), X)


def test_modules_that_only_look_alike_keep_their_forward():
    class WithMean(LlamaRMSNorm):
        def forward(self, hidden_states):
            return super().forward(hidden_states - hidden_states.mean(-1, keepdim=True))

    class RoundedOtherwise(LlamaRMSNorm):
        def forward(self, x):
            return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    class WithNorm(LlamaMLP):
        def forward(self, x):
            return self.down_proj(F.normalize(self.act_fn(self.gate_proj(x)) * self.up_proj(x)))

    class WithMore(LlamaRMSNorm):
        def forward(self, hidden_states, gate):
            return super().forward(hidden_states) * gate

    class WithDropout(LlamaMLP):
        def forward(self, x):
            return F.dropout(super().forward(x), 0.5, self.training)

    class OnAGpuAlone(LlamaRMSNorm):  # Liger-Kernel's
        def forward(self, hidden_states):
            raise ValueError("Pointer argument (at 0) cannot be accessed from Triton (cpu tensor?)")

    config = AutoConfig.for_model("llama", hidden_size=8, intermediate_size=12, num_attention_heads=2)
    assert norm_forward(LlamaRMSNorm(8)) is not None
    for kind in (WithMean, WithMore, RoundedOtherwise, OnAGpuAlone):
        kind.__name__ = f"{kind.__name__}RMSNorm"
        assert norm_forward(kind(8)) is None
    assert mlp_forward(WithNorm(config)) is mlp_forward(WithDropout(config).train()) is None


def test_float64_is_left_to_the_model():
    """A float64 model is there to compare with, and our norms compute in float32."""
    model = tiny_model().double()
    assert_equal_steps(step(model, layers=memory_saving_layers(model)), step(model), tolerance=1e-12)


# ---- Layers that share their input


def products_of(model):
    """Number of layers that each operation of a forward pass computes, in order."""
    counts, apply = [], _Linears.apply

    def counted(x, dtype, scalings, *tensors):
        counts.append(len(scalings))
        return apply(x, dtype, scalings, *tensors)

    return counts, mock.patch.object(_Linears, "apply", counted)


@pytest.mark.parametrize("adapter", ["all", "some", None])
def test_queries_keys_and_values_are_one_operation_and_gate_and_up_another(adapter):
    model = architecture("qwen3")
    if adapter:
        names = "all-linear" if adapter == "all" else ["q_proj", "v_proj", "up_proj"]
        model = with_adapter(model, target_modules=names)
    layers = memory_saving_layers(model)
    expected = step(model)
    counts, counting = products_of(model)
    with counting:
        assert_equal_steps(step(model, layers=layers), expected)
    alone = [] if adapter == "some" else [1]  # o_proj and down_proj are frozen: they run their own forward
    layer = [3, *alone, 2, *alone]
    assert counts == layer * 2 + ([1] if adapter is None else [])  # the output layer is trained, too


@pytest.mark.parametrize("reentrant", [True, False])
def test_groups_in_checkpointed_layers(reentrant):
    model = with_adapter(architecture("qwen3"))
    expected = step(model)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    layers = memory_saving_layers(model)
    counts, counting = products_of(model)
    with counting:
        for _ in range(2):
            assert_equal_steps(step(model, layers=layers), expected)
    assert set(counts) == {3, 2, 1}


class Crossed(nn.Module):
    """Keys and values of another input than the queries'; or values are not asked for at all."""

    def __init__(self, no_values):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(8, 6) for _ in range(3))
        self.no_values = no_values

    def forward(self, x):
        other = x if self.no_values else x.flip(0)
        y = self.q_proj(x) * self.k_proj(other)
        return y if self.no_values else y + self.v_proj(other)


@pytest.mark.parametrize("no_values", [True, False])
def test_a_group_that_is_none_is_given_up(no_values):
    torch.manual_seed(0)
    module = Crossed(no_values)
    layers = memory_saving_layers(module)
    assert len(layers.groups) == 1
    counts, counting = products_of(module)

    def gradients():
        module.zero_grad()
        y = module(X.detach())
        y.sum().backward()
        return y.detach(), *(p.grad for p in module.parameters())

    expected = gradients()
    operations = []
    for _ in range(3):
        counts.clear()
        with counting, layers.applied():
            found = gradients()
        operations.append(list(counts))
        assert [t is None for t in found] == [t is None for t in expected]
        assert all(torch.allclose(*pair) for pair in zip(found, expected, strict=True) if pair[0] is not None)
    # Results are left over when the group is asked for the next input: in the first pass, or in the second.
    assert operations == ([[3], [1, 1], [1, 1]] if no_values else [[3, 1, 1], [1, 1, 1], [1, 1, 1]])


def test_an_input_that_is_written_to_between_the_layers():
    class Writing(Crossed):
        def forward(self, x):
            x = x.clone()
            query = self.q_proj(x).detach()
            return query * self.k_proj(x.mul_(2)) + self.v_proj(x)

    module = Writing(False)
    layers, expected = memory_saving_layers(module), module(X)
    with layers.applied():
        assert torch.allclose(module(X), expected)


def test_results_that_nobody_asked_for_are_dropped_when_a_step_fails():
    module = Crossed(False)
    layers = memory_saving_layers(module)
    with pytest.raises(IndexError), layers.applied():
        module.k_proj(module.q_proj(X)[9])
    (group,) = layers.groups
    assert group._input is None
    assert not group._results
    with layers.applied():
        module.q_proj(X), module.k_proj(X), module.v_proj(X)
    assert group._is_group


# ---- Rotary embeddings

ROTATIONS = {  # not of neighbouring channels (GLM, Cohere), nor rounded otherwise (OLMo 2)
    "llama": True, "mistral": True, "qwen2": True, "qwen3": True, "gemma2": True, "gemma3_text": True, "granite": True,
    "smollm3": True, "phi3": True, "glm4": False, "cohere2": False, "olmo2": False, "gpt2": False,
}  # fmt: skip


@pytest.mark.parametrize("name", ROTATIONS)
def test_which_models_rotate_queries_and_keys_as_the_kernel_does(name):
    model = architecture(name)
    functions = memory_saving_layers(model).functions
    assert len(functions) == ROTATIONS[name]


def test_the_function_of_a_models_module_is_replaced_while_layers_are_applied():
    model = architecture("llama")
    layers, own = memory_saving_layers(model), modeling_llama.apply_rotary_pos_emb
    with layers.applied():
        assert modeling_llama.apply_rotary_pos_emb is layers.functions[0].ours
        with layers.applied():
            pass
        assert modeling_llama.apply_rotary_pos_emb is layers.functions[0].ours
    assert modeling_llama.apply_rotary_pos_emb is own


def test_one_row_of_angles_for_all_tokens_is_left_to_the_models_own_function():
    """It broadcasts; the kernel would read behind the row."""
    query, key, cos, sin = (torch.randn(*shape) for shape in ((1, 4, 5, 8), (1, 2, 5, 8), (1, 1, 8), (1, 1, 8)))
    calls = []
    own = lambda *args: calls.append(args) or modeling_llama.apply_rotary_pos_emb(*args)  # noqa: E731
    with mock.patch.object(rotary, "kernels_take", return_value=True):
        rotary.forward_rotary(own, True, query, key, cos.expand(1, 5, 8), sin.expand(1, 5, 8))
        assert not calls
        rotary.forward_rotary(own, True, query, key, cos, sin)
    assert len(calls) == 1


# ---- The model inside and afterwards


def test_the_model_is_unchanged_afterwards():
    model = with_adapter(tiny_model())
    before, state = {name: dict(vars(m)) for name, m in model.named_modules()}, torch.get_rng_state()
    layers = memory_saving_layers(model)
    step(model, layers=layers)
    with pytest.raises(IndexError), layers.applied():
        model(torch.tensor([[264]]))  # outside of the vocabulary
    assert {name: dict(vars(m)) for name, m in model.named_modules()} == before
    assert torch.equal(torch.get_rng_state(), state)
    copies = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    for other in copies:
        assert torch.equal(other(IDS).logits, model(IDS).logits)


def test_the_model_can_be_saved_and_generate_inside():
    model = with_adapter(tiny_model())
    layers = memory_saving_layers(model)
    keys, answer = list(model.state_dict()), model.generate(IDS, max_new_tokens=4, do_sample=False)
    with layers.applied():
        assert list(model.state_dict()) == keys
        assert torch.equal(model.generate(IDS, max_new_tokens=4, do_sample=False), answer)
        with layers.applied():  # as an evaluation during training would
            pass
        assert any("forward" in vars(module) for module in model.modules())
    logits = model(IDS).logits
    assert torch.allclose(model.merge_and_unload()(IDS).logits, logits, atol=1e-4)


def test_without_version_counters():
    model = with_adapter(tiny_model()).eval()
    layers = memory_saving_layers(model)
    with torch.inference_mode():
        expected = model(IDS).logits
        with layers.applied():
            assert torch.allclose(model(IDS).logits, expected, atol=1e-5)


def test_hooks_on_an_activation_are_called():
    model = tiny_model()
    layers, called = memory_saving_layers(model), []
    model.model.layers[0].mlp.act_fn.register_forward_hook(lambda *args: called.append(args))
    with layers.applied():
        model(IDS)
    assert len(called) == 1


def test_a_forward_that_other_code_replaced_stays():
    model = tiny_model()
    layers = memory_saving_layers(model)
    norm = model.model.norm
    norm.forward = replaced = lambda x: x
    with layers.applied():
        assert norm.forward is replaced
    assert norm.forward is replaced


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant):
    model = with_adapter(tiny_model())
    expected = step(model)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert_equal_steps(step(model, layers=memory_saving_layers(model)), expected)


def test_torch_compile_sees_the_models_own_forwards():
    model = with_adapter(tiny_model())
    layers, expected, graphs = memory_saving_layers(model), step(model), []
    compiled = torch.compile(model, backend=lambda graph, inputs: graphs.append(graph.code) or graph)
    found = step(compiled, layers=layers)
    assert_equal_steps({name.removeprefix("_orig_mod."): t for name, t in found.items()}, expected)
    assert graphs
    assert not any("autograd_function" in code for code in graphs)


def test_distributed_data_parallel(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = with_adapter(tiny_model())
        expected, layers = step(model), memory_saving_layers(model)
        found = step(nn.parallel.DistributedDataParallel(model), layers=layers)
        assert_equal_steps({name.removeprefix("module."): t for name, t in found.items()}, expected)
    finally:
        torch.distributed.destroy_process_group()


# ---- Quantised weights


def quantised_layer(kind, bias):
    """PEFT's LoRA layer over a linear layer of bitsandbytes."""
    bnb, lora = pytest.importorskip("bitsandbytes"), pytest.importorskip("peft.tuners.lora.bnb")
    torch.manual_seed(0)
    plain = nn.Linear(64, 96, bias=bias)
    if kind == "int8":
        base, layer_class = bnb.nn.Linear8bitLt(64, 96, bias=bias, has_fp16_weights=False), lora.Linear8bitLt
    else:
        base, layer_class = bnb.nn.Linear4bit(64, 96, bias=bias, quant_type=kind), lora.Linear4bit
    base.load_state_dict(plain.state_dict())
    layer = layer_class(base.to("cpu"), "default", config=LoraConfig(init_lora_weights=False), r=4, lora_alpha=8)
    layer.base_layer.requires_grad_(False)
    return layer.train()


@pytest.mark.parametrize("shape", [(5,), (2, 3), (1600,), (2, 800)], ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
def test_layers_over_quantised_weights(kind, bias, shape):
    """Values and gradients of PEFT's own forward; on GPUs more than 1,536 rows take another way in bitsandbytes."""
    layer = quantised_layer(kind, bias)
    layers = memory_saving_layers(layer)
    assert layers.counts == ({} if kind == "int8" else {"lora": 1})
    x, grad = random((*shape, 64), (*shape, 96), dtype=torch.float32)
    inputs = x, layer.lora_A["default"].weight, layer.lora_B["default"].weight
    expected = results(lambda x, *_: layer(x), inputs, grad)
    with layers.applied():
        found = results(lambda x, *_: layer(x), inputs, grad)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert distance(ours, theirs) <= 1e-5


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory):
    """A model whose queries, keys and values have a bias."""
    pytest.importorskip("bitsandbytes")
    model = architecture("qwen2", hidden_size=64, intermediate_size=128, head_dim=16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    model.save_pretrained(folder := tmp_path_factory.mktemp("qwen2"))
    return folder


QUANTISED = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "int8": {"load_in_8bit": True},
}
ADAPTERS = {"LoRA": {}, "DoRA": {"use_dora": True}, "dropout": {"lora_dropout": 0.2}}
IN_EVERY_RUN = {("nf4", "LoRA", None), ("nf4", "DoRA", False), ("fp4", "dropout", True), ("int8", "LoRA", True)}


@pytest.mark.parametrize(
    ("kind", "adapter", "reentrant"),
    [
        pytest.param(*case, id=" ".join(map(str, case)), marks=[] if case in IN_EVERY_RUN else pytest.mark.slow)
        for case in itertools.product(QUANTISED, ADAPTERS, (None, False, True))
        if case[:2] != ("int8", "DoRA")  # refused on a CPU
    ],
)
def test_steps_over_a_quantised_base_with_biases(qwen2, kind, adapter, reentrant):
    """``reentrant`` is that of gradient checkpointing; ``None`` without."""
    config = BitsAndBytesConfig(**QUANTISED[kind])
    base = AutoModelForCausalLM.from_pretrained(qwen2, dtype=torch.float32, quantization_config=config)
    model = with_adapter(base, **ADAPTERS[adapter])
    torch.manual_seed(1)  # of the dropout
    expected = step(model)
    layers = memory_saving_layers(model)
    assert layers.counts["lora"] == (14 if (adapter, kind == "int8") == ("LoRA", False) else 0)
    if reentrant is not None:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    torch.manual_seed(1)
    assert_equal_steps(step(model, layers=layers), expected)


def test_4_bit_base_in_bf16(tmp_path):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    architecture("llama", hidden_size=64, intermediate_size=128, head_dim=16).save_pretrained(tmp_path)
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="bfloat16")
    base = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16, quantization_config=config)
    model = with_adapter(base)
    assert isinstance(model.base_model.model.model.layers[0].mlp.up_proj.base_layer, bitsandbytes.nn.Linear4bit)
    layers = memory_saving_layers(model)
    assert layers.counts["lora"] == 14
    own, found = step(model, bf16=True), step(model, bf16=True, layers=layers)
    layer, x = model.base_model.model.model.layers[0].mlp.up_proj.eval(), random((2, 64), dtype=torch.bfloat16)[0]
    names = ["default", "__base__"]
    with layers.applied():
        mixed = layer(x, adapter_names=names)
    assert torch.equal(mixed, layer(x, adapter_names=names))
    # Both round to bf16, at other places; against each other they are twice as far off as each of them is.
    assert_equal_steps(found, own, tolerance=0.1)
    assert distance(found["logits"], own["logits"]) < 0.02
