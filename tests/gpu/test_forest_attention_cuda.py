"""Each kernel against the whole mask in float64: values and gradients, over types, windows, head sizes and forests."""

import warnings
from functools import partial
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from oddsmith.batching.forest import forest_batch, pack
from oddsmith.model.logprobs.attention import cuda as attention_cuda
from oddsmith.model.logprobs.attention import dense_forest_attention, forest_attention_in
from oddsmith.model.logprobs.attention.cuda import block_mask, cuda_forest_attention, flex_forest_attention
from oddsmith.model.logprobs.output_transform import output_transform
from oddsmith.model.logprobs.packed import forest_logps
from tests.tiny import tiny_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]

# Of the norm of the exact result: a few roundings of each type.
TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 1.5e-3, torch.float32: 1e-5}
HALF = (torch.bfloat16, torch.float16)


def random_forest(seed, prompts=4, longest=600):
    """Prompts of one to ``longest`` tokens with two to five answers, some of which begin alike or end early."""
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(prompts):
        prompt = generator.integers(0, 100, generator.integers(1, longest))
        start = generator.integers(0, 100, generator.integers(1, longest // 4))
        for shared in (start, start[: len(start) // 2], *[start[:0]] * int(generator.integers(0, 4))):
            rows.append(np.concatenate([prompt, shared, generator.integers(0, 100, generator.integers(1, longest))]))
        rows.append(prompt)
    return pack(rows)[2]


FORESTS = {
    "ragged": lambda: random_forest(0),
    "one prompt": lambda: random_forest(1, prompts=1),
    "many short": lambda: random_forest(2, prompts=40, longest=20),
    "one token": lambda: pack([np.array([7])])[2],
    "one path": lambda: pack([np.arange(300)])[2],
    "comb": lambda: pack([np.r_[np.arange(n), 999] for n in range(1, 150)])[2],  # every path but the first: one query
}


def random_heads(rows, dtype, heads, groups, channels, value_channels=None):
    generator = torch.Generator(device="cuda").manual_seed(rows)
    return tuple(
        torch.randn(1, n, rows, size, generator=generator, device="cuda").to(dtype).requires_grad_()
        for n, size in ((heads, channels), (groups, channels), (groups, value_channels or channels))
    )


def values_and_gradients(attend, tensors, layout, **options):
    out = attend(*tensors, layout, scaling=0.1, **options)
    weights = torch.linspace(-1, 1, out.numel(), device="cuda", dtype=torch.float64).reshape(out.shape)
    return out, *torch.autograd.grad(out, tensors, weights.to(out.dtype))


def assert_exact(attend, tensors, layout, **options):
    ours = values_and_gradients(attend, tensors, layout, **options)
    exact = tuple(tensor.detach().double().requires_grad_() for tensor in tensors)
    reference = values_and_gradients(dense_forest_attention, exact, layout, **options)
    # One scale for all: the query's gradient of a token that sees only itself is a difference of equal numbers.
    scale = max(torch.linalg.vector_norm(tensor) for tensor in reference)
    for name, one, other in zip(("out", "query", "key", "value"), ours, reference, strict=True):
        error = (torch.linalg.vector_norm(one.double() - other) / scale).item()
        assert error <= TOLERANCE[ours[0].dtype], f"{name}: {error:.2g}"


@pytest.fixture(params=["torch", "flash_attn"])
def flash(request, monkeypatch):
    """``cuda_forest_attention`` with one of its two kernels."""
    if request.param == "torch":
        monkeypatch.setattr(attention_cuda, "_varlen_kernel", lambda device: attention_cuda._by_torch)
    else:
        if find_spec("flash_attn") is None:
            pytest.skip("flash_attn is not installed")
        from flash_attn import flash_attn_varlen_func

        chosen = partial(attention_cuda._by_flash_attn, flash_attn_varlen_func)
        monkeypatch.setattr(attention_cuda, "_varlen_kernel", lambda device: chosen)
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("older than Ampere")
    # A silent fallback to FlexAttention would pass unnoticed.
    monkeypatch.setattr(attention_cuda, "flex_forest_attention", None)
    return cuda_forest_attention


@pytest.mark.parametrize("forest", FORESTS)
@pytest.mark.parametrize("window", [None, 1, 7, 200])
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_flash_kernel_over_forests_and_windows(flash, dtype, window, forest):
    layout = FORESTS[forest]().to(torch.device("cuda"))
    assert_exact(flash, random_heads(len(layout.depth_T), dtype, 4, 2, 64), layout, window=window)


@pytest.mark.parametrize(
    ("heads", "groups", "channels", "value_channels"),
    (
        (8, 8, 64, 64),
        (8, 1, 64, 64),
        (14, 2, 64, 64),
        (4, 2, 8, 8),
        (4, 4, 80, 80),
        (32, 8, 128, 128),
        (4, 2, 192, 128),
        (4, 2, 256, 256),
    ),
)
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_flash_kernel_over_heads(flash, dtype, heads, groups, channels, value_channels):
    layout = random_forest(3).to(torch.device("cuda"))
    tensors = random_heads(len(layout.depth_T), dtype, heads, groups, channels, value_channels)
    assert_exact(flash, tensors, layout)


@pytest.fixture
def flex():
    """From an empty cache: behind the eighth graph PyTorch stops compiling."""
    torch._dynamo.reset()
    counters.clear()
    yield flex_forest_attention
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_flex_attention_over_forests_and_windows(flex, dtype):
    for make in FORESTS.values():
        layout = make().to(torch.device("cuda"))
        for window in (None, 7, 200):
            assert_exact(flex, random_heads(len(layout.depth_T), dtype, 4, 2, 64), layout, window=window)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs <= 4, f"{graphs} graphs for one kind of layer"


@pytest.mark.parametrize(
    ("dtype", "heads", "groups", "channels", "value_channels", "softcap"),
    (
        (torch.float32, 4, 2, 8, 8, None),
        (torch.float32, 4, 4, 128, 128, None),
        (torch.float32, 4, 2, 24, 16, None),
        (torch.bfloat16, 8, 4, 256, 256, 5.0),
        (torch.bfloat16, 4, 2, 100, 100, None),
        (torch.bfloat16, 4, 1, 512, 512, None),
    ),
)
def test_flex_attention_over_heads_and_soft_caps(flex, dtype, heads, groups, channels, value_channels, softcap):
    layout = random_forest(4).to(torch.device("cuda"))
    tensors = random_heads(len(layout.depth_T), dtype, heads, groups, channels, value_channels)
    assert_exact(flex, tensors, layout, softcap=softcap)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_what_models_call(flex, dtype, softcap):
    layout = random_forest(5).to(torch.device("cuda"))
    assert_exact(cuda_forest_attention, random_heads(len(layout.depth_T), dtype, 4, 2, 64), layout, softcap=softcap)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_attention_does_not_wait_for_the_gpu(flex, dtype):
    layout = random_forest(6).to(torch.device("cuda"))
    tensors = random_heads(len(layout.depth_T), dtype, 4, 2, 64)
    values_and_gradients(cuda_forest_attention, tensors, layout)  # compiled, and the mask made
    weights = torch.ones(1, len(layout.depth_T), 4, 64, device="cuda", dtype=dtype)
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = cuda_forest_attention(*tensors, layout, scaling=0.1)
        torch.autograd.grad(out, tensors, weights)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_mask_is_made_without_waiting_for_the_gpu():
    layout = random_forest(7).to(torch.device("cuda"))
    torch.cuda.set_sync_debug_mode("error")
    try:
        block_mask(layout, 50)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def waits(layers):
    """How often a forward and backward pass of a model makes the host wait for the GPU."""
    model = tiny_model(num_hidden_layers=layers, hidden_size=64, num_attention_heads=4, num_key_value_heads=2)
    model = model.to("cuda", torch.bfloat16)
    generator = np.random.default_rng(0)
    prompt, *answers = (generator.integers(3, 250, n) for n in (60, 50, 40))
    chosen, rejected = (np.concatenate([prompt, answer]) for answer in answers)
    row = {"chosen_input_ids": chosen, "rejected_input_ids": rejected, "chosen_end": len(chosen)}
    row |= {"rejected_end": len(rejected), "chosen_prompt_tokens": 60, "rejected_prompt_tokens": 60}
    batch = {
        name: value.to("cuda") if hasattr(value, "to") and name != "forest" else value
        for name, value in forest_batch([row], "sequence").items()
    }

    def step():
        with forest_attention_in(model):
            logps = forest_logps(model, batch, transform=output_transform(model.config))
            (logps.nll_sum_B.sum() + logps.logp_chosen_B.sum() - logps.logp_rejected_B.sum()).backward()

    step()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)


def test_no_layer_waits_for_the_gpu():
    assert waits(layers=2) == waits(layers=6)
