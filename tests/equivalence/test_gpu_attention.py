"""Attention on a GPU, tested without one: arguments of the flash kernel, FlexAttention's mask (kernels: tests/gpu)."""

import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.utils import counters
from torch.nn.attention.flex_attention import create_block_mask, create_mask, flex_attention
from torch.nn.attention.varlen import varlen_attn

from oddsmith.batching.forest import pack
from oddsmith.model.logprobs.attention import cuda as attention_cuda
from oddsmith.model.logprobs.attention import dense_forest_attention
from oddsmith.model.logprobs.attention.cuda import BLOCK, block_mask, cuda_forest_attention, flex_forest_attention

sequences = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=6)


def layout_of(sequences):
    return pack([np.array(sequence) for sequence in sequences])[2]


def long_forest(seed, prompts=2, longest=500):
    """A few prompts with two or three answers each, some of which begin alike: several blocks of rows."""
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(prompts):
        prompt = generator.integers(0, 50, generator.integers(1, longest))
        start = generator.integers(0, 50, generator.integers(1, longest // 4))
        for shared in (start, start[:1], start[:0]):
            rows.append(np.concatenate([prompt, shared, generator.integers(0, 50, generator.integers(1, longest))]))
    return pack(rows)[2]


def random_heads(rows, dtype, heads=4, groups=2, channels=8, value_channels=None, requires_grad=False):
    generator = torch.Generator().manual_seed(rows)
    return tuple(
        torch.randn(1, n, rows, size, generator=generator).to(dtype).requires_grad_(requires_grad)
        for n, size in ((heads, channels), (groups, channels), (groups, value_channels or channels))
    )


def assert_same_values_and_gradients(attend, tensors, layout, tolerance, **options):
    found, expected = (way(*tensors[:3], layout, **options) for way in (attend, dense_forest_attention))
    weights = torch.linspace(-1, 1, found.numel()).reshape(found.shape).to(found)
    ours = (found, *torch.autograd.grad(found, tensors, weights))
    reference = (expected, *torch.autograd.grad(expected, tensors, weights))
    for one, other in zip(ours, reference, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


def flash_as_documented(query_THC, key_KGC, value_KGC, forest, scaling, window):
    """flash-attention's words on ``causal`` and ``window_size``, in plain torch.

    "If seqlen_q != seqlen_k [...] the causal mask is aligned to the bottom right corner"; "Query at position i will
    only attend to keys between [i + seqlen_k - seqlen_q - window_size[0], i + seqlen_k - seqlen_q + window_size[1]]".
    """
    left, right = window
    outs = []
    ends = zip(forest.query_ends_P.tolist(), forest.key_ends_P.tolist(), strict=True)
    (query_start, key_start), *ends = ends
    for query_end, key_end in ends:
        groups = query_THC.shape[1] // key_KGC.shape[1]
        query = query_THC[query_start:query_end].transpose(0, 1)
        key, value = (t[key_start:key_end].transpose(0, 1).repeat_interleave(groups, 0) for t in (key_KGC, value_KGC))
        own = torch.arange(query.shape[1])[:, None] + key.shape[1] - query.shape[1]
        column = torch.arange(key.shape[1])
        hidden = (column > own + right) | ((column < own - left) if left >= 0 else False)
        scores = (query @ key.transpose(1, 2) * scaling).masked_fill(hidden, float("-inf"))
        outs.append((scores.softmax(-1) @ value).transpose(0, 1))
        query_start, key_start = query_end, key_end
    return torch.cat(outs)


@pytest.fixture
def documented_kernel(monkeypatch):
    """In float64 and on the CPU, what the documentation says of the kernel in its place."""
    monkeypatch.setattr(attention_cuda, "_flash_takes", lambda query, value: True)
    monkeypatch.setattr(attention_cuda, "_varlen_kernel", lambda device: flash_as_documented)


@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("value_channels", [8, 6])
def test_paths_as_sequences_of_flash_attention_agree_with_the_whole_mask(documented_kernel, window, value_channels):
    @given(sequences=sequences)
    @settings(max_examples=15)
    def agrees(sequences):
        layout = layout_of(sequences)
        tensors = random_heads(len(layout.depth_T), torch.float64, value_channels=value_channels, requires_grad=True)
        assert_same_values_and_gradients(cuda_forest_attention, tensors, layout, 1e-9, scaling=0.4, window=window)

    agrees()


@pytest.mark.parametrize("groups", [4, 2])
def test_the_arguments_of_varlen_attn_are_those_it_takes(groups):
    """On the meta device PyTorch checks them and works out the shape."""
    layout = long_forest(0)
    query, key, value = (t[0].transpose(0, 1).to("meta") for t in random_heads(9, torch.bfloat16, groups=groups))
    out = attention_cuda._by_torch(query, key, value, layout, 0.4, (-1, 0))
    assert out.shape == query.shape


def test_an_argument_that_pytorch_does_not_have_is_left_out(monkeypatch):
    """2.11 has no ``enable_gqa``."""
    seen = {}

    def of_2_11(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=None):
        seen.update(max_q=max_q, max_k=max_k, scale=scale, window_size=window_size)
        return query

    layout = layout_of([[1, 2, 3], [1, 2, 4, 5]])
    monkeypatch.setattr(attention_cuda, "varlen_attn", of_2_11)
    attention_cuda._varlen_takes_enable_gqa.cache_clear()
    try:
        query, key, value = (t[0].transpose(0, 1) for t in random_heads(5, torch.bfloat16))
        attention_cuda._by_torch(query, key, value, layout, 0.4, (2, 0))
    finally:
        attention_cuda._varlen_takes_enable_gqa.cache_clear()
    assert seen == {"max_q": 3, "max_k": 4, "scale": 0.4, "window_size": (2, 0)}
    assert "window_size" in inspect.signature(varlen_attn).parameters


@pytest.mark.parametrize(
    ("dtype", "channels", "value_channels", "taken"),
    (
        (torch.bfloat16, 128, 128, True),
        (torch.float16, 256, 256, True),
        (torch.bfloat16, 192, 128, True),
        (torch.bfloat16, 80, 80, True),
        (torch.bfloat16, 512, 512, False),
        (torch.bfloat16, 100, 100, False),
        (torch.bfloat16, 64, 128, False),
        (torch.float32, 64, 64, False),
    ),
)
def test_which_heads_are_for_the_flash_kernel(dtype, channels, value_channels, taken):
    query, _, value = random_heads(2, dtype, channels=channels, value_channels=value_channels)
    assert attention_cuda._flash_takes(query, value) is taken


@pytest.mark.parametrize("seen", [(None, None), (3, None), (None, 4)], ids=str)
@given(sequences=sequences)
@settings(max_examples=25)
def test_the_mask_function_is_the_mask(seen, sequences):
    layout = layout_of(sequences)
    rows = len(layout.depth_T)
    mask = create_mask(block_mask(layout, *seen).mask_mod, None, None, rows, rows, device="cpu")[0, 0]
    assert torch.equal(mask, layout.ancestor_mask(*seen))


def blocks(mask, kind):
    """The blocks of a kind (``""``: looked at in detail, ``"full_"``: taken whole), as a bool matrix."""
    counts, which = getattr(mask, f"{kind}kv_num_blocks")[0, 0], getattr(mask, f"{kind}kv_indices")[0, 0]
    dense = torch.zeros_like(which, dtype=torch.bool)
    for row, (count, columns) in enumerate(zip(counts.tolist(), which.tolist(), strict=True)):
        dense[row, columns[:count]] = True
    return dense


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("seen", [(None, None), (40, None), (300, None), (None, 40), (None, 300)], ids=str)
def test_blocks_are_what_the_mask_says(seen, seed):
    layout = long_forest(seed)
    rows = len(layout.depth_T)
    ours = block_mask(layout, *seen)
    reference = create_block_mask(ours.mask_mod, None, None, rows, rows, device="cpu", BLOCK_SIZE=BLOCK)
    some, whole = blocks(ours, ""), blocks(ours, "full_")
    seen, seen_whole = blocks(reference, "") | blocks(reference, "full_"), blocks(reference, "full_")
    assert not (some & whole).any()
    assert ours.shape == reference.shape
    if seen == (None, None):
        assert torch.equal(some | whole, seen)
        assert torch.equal(whole, seen_whole)
    else:  # nothing is left out, nothing hidden is taken
        assert not (seen & ~(some | whole)).any()
        assert not (whole & ~seen_whole).any()
        assert (some | whole).sum() < some.numel()


@pytest.fixture
def uncompiled(monkeypatch):
    """FlexAttention without a compiler, which has gradients on a CPU too, although it asks for another device."""
    monkeypatch.setattr(attention_cuda, "_compiled", lambda: flex_attention)
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *tensors: None)


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)], ids=str)
@pytest.mark.parametrize(
    ("options", "channels", "value_channels", "groups"),
    (
        ({}, 16, 16, 4),
        ({"window": 20}, 16, 16, 2),
        ({"softcap": 2.0}, 32, 32, 2),
        ({"window": 60, "softcap": 2.0}, 8, 8, 1),
        ({}, 24, 16, 2),
        ({"chunk": 30}, 16, 16, 2),
        ({"window": 20, "sinks": [-3.0, 0.0, 1.5, 30.0]}, 16, 8, 2),
    ),
    ids=str,
)
def test_flex_attention_agrees_with_the_whole_mask(
    uncompiled, dtype, tolerance, options, channels, value_channels, groups
):
    layout = long_forest(7, longest=70)
    sizes = {"groups": groups, "channels": channels, "value_channels": value_channels}
    tensors = random_heads(len(layout.depth_T), dtype, **sizes, requires_grad=True)
    if "sinks" in options:
        options = options | {"sinks": torch.tensor(options["sinks"], dtype=dtype, requires_grad=True)}
        tensors = *tensors, options["sinks"]
    assert_same_values_and_gradients(flex_forest_attention, tensors, layout, tolerance, scaling=0.4, **options)


def test_one_mask_serves_all_layers_and_one_graph_all_forests(monkeypatch):
    """Every graph is a kernel to compile, and behind the eighth PyTorch stops compiling."""
    monkeypatch.setattr(attention_cuda, "_compiled", lambda: compiled)
    compiled = torch.compile(flex_attention, dynamic=True, backend="eager")
    torch._dynamo.reset()
    block_mask.cache_clear()
    before = counters["stats"]["unique_graphs"]
    with torch.no_grad():
        for seed in range(4):
            layout = long_forest(seed, prompts=1 + seed % 2, longest=120)
            tensors = random_heads(len(layout.depth_T), torch.float32, channels=16)
            for window in (None, 50, None, 50):
                flex_forest_attention(*tensors, layout, scaling=0.4, window=window)
    assert block_mask.cache_info().misses == 4 * 2
    assert counters["stats"]["unique_graphs"] - before <= 2
