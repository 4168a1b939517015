"""Each kernel against the whole mask in float64: values and gradients, over types, windows, head sizes and forests.

On the CPU plain torch stands in for the kernels (``devices.py``), and everything around them runs as on a GPU: which of
them is called, the gathered keys, padded channels, masks, scores, gradients.
"""

import warnings
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from oddsmith.batching.forest import forest_batch, pack
from oddsmith.model.logprobs.attention import dense_forest_attention, flash, forest_attention, forest_attention_in
from oddsmith.model.logprobs.attention.cuda import Kind, chosen_attention, cuda_forest_attention
from oddsmith.model.logprobs.attention.flex import block_mask, flex_forest_attention
from oddsmith.model.logprobs.current_layout import set_layout
from oddsmith.model.logprobs.output_transform import output_transform
from oddsmith.model.logprobs.packed import forest_logps
from tests.tiny import tiny_model

from .devices import HALF, NEEDS_GPU, kernels_in_plain_torch, on_devices, skip_without, varlen_in_loops

# Of the norm of the exact result: a few roundings of each type.
TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 1.5e-3, torch.float32: 1e-5}


@pytest.fixture(autouse=True)
def plain_torch(request):
    """On the CPU the kernels are computed in plain torch."""
    on_cpu = request.node.callspec.params.get("device") == "cpu" if hasattr(request.node, "callspec") else False
    with kernels_in_plain_torch() if on_cpu else nullcontext():
        yield


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
    "ragged": lambda size: random_forest(0, longest=size),
    "one prompt": lambda size: random_forest(1, prompts=1, longest=size),
    "many short": lambda size: random_forest(2, prompts=size // 15, longest=20),
    "one token": lambda size: pack([np.array([7])])[2],
    "one path": lambda size: pack([np.arange(size // 2)])[2],
    "comb": lambda size: pack([np.r_[np.arange(n), 999] for n in range(1, size // 4)])[2],  # a query a path
}
SIZE = {"cpu": 60, "cuda": 600}


def random_heads(device, rows, dtype, heads, groups, channels, value_channels=None):
    generator = torch.Generator(device=device).manual_seed(rows)
    return tuple(
        torch.randn(1, n, rows, size, generator=generator, device=device).to(dtype).requires_grad_()
        for n, size in ((heads, channels), (groups, channels), (groups, value_channels or channels))
    )


def values_and_gradients(attend, tensors, layout, **options):
    out = attend(*tensors[:3], layout, scaling=0.1, **options, **({"sinks": tensors[3]} if tensors[3:] else {}))
    weights = torch.linspace(-1, 1, out.numel(), device=out.device, dtype=torch.float64).reshape(out.shape)
    return out, *torch.autograd.grad(out, tensors, weights.to(out.dtype))


def assert_exact(attend, tensors, layout, **options):
    ours = values_and_gradients(attend, tensors, layout, **options)
    exact = tuple(tensor.detach().double().requires_grad_() for tensor in tensors)
    reference = values_and_gradients(dense_forest_attention, exact, layout, **options)
    # One scale for all: the query's gradient of a token that sees only itself is a difference of equal numbers.
    scale = max(torch.linalg.vector_norm(tensor) for tensor in reference)
    names = ("out", "query", "key", "value", "sinks")
    for name, one, other in zip(names, ours, reference, strict=False):
        error = (torch.linalg.vector_norm(one.double() - other) / scale).item()
        assert error <= TOLERANCE[tensors[0].dtype], f"{name}: {error:.2g}"


@pytest.fixture(name="flash", params=["torch", "flash_attn"])
def flash_attention(request):
    """``flash_forest_attention`` with one of its two kernels."""
    kernel = varlen_in_loops
    if request.getfixturevalue("device") == "cuda":
        if torch.cuda.get_device_capability() < (8, 0):
            pytest.skip("older than Ampere")
        kernel = flash._by_torch
        if request.param == "flash_attn":
            if find_spec("flash_attn") is None:
                pytest.skip("flash_attn is not installed")
            from flash_attn import flash_attn_varlen_func

            kernel = partial(flash._by_flash_attn, flash_attn_varlen_func)
    elif request.param != "torch":
        pytest.skip("one stand-in for both on the CPU")
    return partial(flash.flash_forest_attention, kernel)


WINDOWS = [(window, dtype) for dtype in HALF for window in (None, 1, 7, 200)]


@pytest.mark.parametrize("forest", FORESTS)
@pytest.mark.parametrize(("device", "case"), on_devices(WINDOWS, [(7, torch.bfloat16)]))
def test_flash_kernel_over_forests_and_windows(device, case, forest, flash):
    window, dtype = case
    skip_without(device, dtype)
    layout = FORESTS[forest](SIZE[device]).to(torch.device(device))
    tensors = random_heads(device, len(layout.depth_T), dtype, 4, 2, 64)
    assert_exact(flash, tensors, layout, window=window)


# heads, groups, channels, channels of values
HEADS = [
    (4, 2, 192, 128), (8, 8, 64, 64), (8, 1, 64, 64), (14, 2, 64, 64), (4, 2, 8, 8), (4, 4, 80, 80), (4, 4, 96, 96),
    (32, 8, 128, 128), (4, 2, 256, 256),
]  # fmt: skip


@pytest.mark.parametrize(("device", "case"), on_devices(HEADS))
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_flash_kernel_over_heads(device, case, dtype, flash):
    skip_without(device, dtype)
    layout = random_forest(3, longest=SIZE[device]).to(torch.device(device))
    assert_exact(flash, random_heads(device, len(layout.depth_T), dtype, *case), layout)


@pytest.fixture
def flex():
    """From an empty cache: behind the eighth graph PyTorch stops compiling."""
    torch._dynamo.reset()
    counters.clear()
    yield flex_forest_attention
    torch._dynamo.reset()


@pytest.mark.parametrize(("device", "dtype"), on_devices(list(TOLERANCE), [torch.float32], quick=1))
def test_flex_attention_over_forests_and_windows(device, dtype, flex):
    skip_without(device, dtype)
    for make in FORESTS.values():
        layout = make(SIZE[device]).to(torch.device(device))
        for window in (None, 7, 200) if device == "cuda" else (7,):
            assert_exact(flex, random_heads(device, len(layout.depth_T), dtype, 4, 2, 64), layout, window=window)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs <= (1 if device == "cuda" else 4), f"{graphs} graphs for one kind of layer"


BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
ASKED = {"plain": {}, "window": {"window": 50}, "soft cap": {"softcap": 5.0}, "chunk": {"chunk": 64}}
ASKED |= {"soft cap and window": {"softcap": 5.0, "window": 50}, "sinks": {}, "sinks and window": {"window": 50}}
# Type, heads, groups, channels, channels of values. Each is compiled, which takes seconds; four are of the quick ones.
FLEX_HEADS = [
    (FP32, 4, 2, 24, 16), (FP32, 4, 2, 8, 8), (FP32, 4, 4, 64, 64), (FP32, 4, 4, 128, 128), (FP32, 4, 4, 256, 256),
    (BF16, 8, 4, 256, 256), (FP16, 8, 4, 256, 256), (BF16, 4, 2, 100, 100), (BF16, 4, 1, 512, 512),
]  # fmt: skip
QUICK = [
    ("soft cap", BF16, 8, 4, 256, 256),
    ("plain", FP32, 4, 4, 128, 128),
    ("chunk", FP32, 4, 4, 64, 64),
    ("sinks and window", FP32, 4, 4, 64, 64),
]
ALL = [(asked, *sizes) for sizes in FLEX_HEADS for asked in ASKED]
ON_CPU = [(asked, *FLEX_HEADS[0]) for asked in ASKED]


@pytest.mark.parametrize(
    ("device", "case"), on_devices([*QUICK, *(c for c in ALL if c not in QUICK)], ON_CPU, quick=len(QUICK))
)
def test_flex_attention_over_heads_and_what_models_ask_for(device, case, flex):
    """Soft caps (Gemma 2), windows, chunks (Llama 4), sinks (gpt-oss), in heads of all sizes."""
    asked, dtype, heads, *sizes = case
    skip_without(device, dtype)
    layout = random_forest(4, longest=SIZE[device]).to(torch.device(device))
    tensors = random_heads(device, len(layout.depth_T), dtype, heads, *sizes)
    if "sinks" in asked:
        tensors += (torch.linspace(-2, 2, heads, device=device).to(dtype).requires_grad_(),)
    assert_exact(flex, tensors, layout, **ASKED[asked])


# What a layer of a well-known model asks for: type, heads, groups, channels, channels of values; and what else.
LAYERS = {
    "Llama 3 8B": (BF16, 32, 8, 128, 128, {}),
    "Llama 3 8B in float32": (FP32, 32, 8, 128, 128, {}),
    "Gemma 2 9B": (BF16, 16, 8, 256, 256, {"softcap": 50.0, "windowed": True}),
    "gpt-oss": (BF16, 64, 8, 64, 64, {"has_sinks": True, "windowed": True}),
    "Llama 4": (BF16, 40, 8, 128, 128, {"chunked": True}),
    "DeepSeek V3": (BF16, 16, 16, 192, 128, {}),
}
NOTHING = {"windowed": False, "chunked": False, "softcap": None, "has_sinks": False}


@pytest.mark.parametrize(("device", "name"), on_devices(list(LAYERS), list(LAYERS), quick=3))
def test_a_kernel_passes_its_first_trial(device, name, flex, caplog):
    """No layer of a well-known model needs a second choice, or the whole mask, whose memory grows with its square."""
    dtype, *sizes, asked = LAYERS[name]
    skip_without(device, dtype)
    kind = Kind(torch.device(device, 0), dtype, *sizes, **NOTHING | asked)
    assert chosen_attention(kind) is not dense_forest_attention
    assert [record.getMessage() for record in caplog.records if record.name.startswith("oddsmith")] == []


# bf16 and fp16 without more are computed by flash kernels, which nothing has to compile; one with a soft cap is quick.
CALLS = [("plain", BF16), ("window", FP16), ("soft cap and window", BF16)]
OTHER_CALLS = [call for call in ((asked, dtype) for dtype in TOLERANCE for asked in ASKED) if call not in CALLS]


@pytest.mark.parametrize(
    ("device", "case"), on_devices([*CALLS, *OTHER_CALLS], [(asked, BF16) for asked in ASKED], quick=len(CALLS))
)
def test_what_models_call(device, case, flex):
    """``forest_attention``, as transformers' layers call it, by whatever kernel it chooses."""
    asked, dtype = case
    skip_without(device, dtype)
    layout = random_forest(5, longest=SIZE[device]).to(torch.device(device))
    tensors = random_heads(device, len(layout.depth_T), dtype, 4, 2, 64)
    sinks = "sinks" in asked
    if sinks:
        tensors += (torch.linspace(-2, 2, 4, device=device).to(dtype).requires_grad_(),)
    options = ASKED[asked]
    config = SimpleNamespace(layer_types=["chunked_attention"], attention_chunk_size=options.get("chunk"))
    layer = SimpleNamespace(layer_idx=0, config=config if "chunk" in options else None)

    def attend(query, key, value, forest, *, scaling, window=None, chunk=None, softcap=None, sinks=None):
        set_layout(forest)
        try:
            return forest_attention(
                layer, query, key, value, scaling=scaling, sliding_window=window, softcap=softcap, s_aux=sinks
            )[0]
        finally:
            set_layout(None)

    assert_exact(attend, tensors, layout, **options)


@contextmanager
def never_waiting(device):
    """Raise where the host would wait for the GPU."""
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(("device", "dtype"), on_devices([torch.bfloat16, torch.float32]))
def test_attention_does_not_wait_for_the_gpu(device, dtype, flex):
    layout = random_forest(6, longest=SIZE[device]).to(torch.device(device))
    tensors = random_heads(device, len(layout.depth_T), dtype, 4, 2, 64)
    values_and_gradients(cuda_forest_attention, tensors, layout)  # compiled, and the mask made
    weights = torch.ones(1, len(layout.depth_T), 4, 64, device=device, dtype=dtype)
    with never_waiting(device):
        out = cuda_forest_attention(*tensors, layout, scaling=0.1)
        torch.autograd.grad(out, tensors, weights)


@pytest.mark.parametrize(("device", "window"), on_devices([50, None], 2))
def test_the_mask_is_made_without_waiting_for_the_gpu(device, window):
    layout = random_forest(7, longest=SIZE[device]).to(torch.device(device))
    with never_waiting(device):
        block_mask(layout, window)


def waits(device, layers):
    """How often a forward and backward pass of a model makes the host wait for the GPU; on the CPU never."""
    model = tiny_model(num_hidden_layers=layers, hidden_size=64, num_attention_heads=4, num_key_value_heads=2)
    model = model.to(device, torch.bfloat16)
    generator = np.random.default_rng(0)
    prompt, *answers = (generator.integers(3, 250, n) for n in (60, 50, 40))
    chosen, rejected = (np.concatenate([prompt, answer]) for answer in answers)
    row = {"chosen_input_ids": chosen, "rejected_input_ids": rejected, "chosen_end": len(chosen)}
    row |= {"rejected_end": len(rejected), "chosen_prompt_tokens": 60, "rejected_prompt_tokens": 60}
    batch = {
        name: value.to(device) if hasattr(value, "to") and name != "forest" else value
        for name, value in forest_batch([row], "sequence").items()
    }

    def step():
        with forest_attention_in(model):
            logps = forest_logps(model, batch, transform=output_transform(model.config))
            (logps.nll_sum_B.sum() + logps.logp_chosen_B.sum() - logps.logp_rejected_B.sum()).backward()

    step()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            if device == "cuda":
                torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
def test_no_layer_waits_for_the_gpu(device):
    assert waits(device, layers=2) == waits(device, layers=6)
