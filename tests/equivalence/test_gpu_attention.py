"""Attention on a GPU, tested without one: arguments of the flash kernel, FlexAttention's mask (kernels: tests/gpu)."""

import inspect
import itertools
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.utils import counters
from torch.nn.attention.flex_attention import create_block_mask, create_mask, flex_attention
from torch.nn.attention.varlen import varlen_attn
from torch.utils.checkpoint import checkpoint

from oddsmith.batching.forest import pack
from oddsmith.model.logprobs.attention import cuda as attention_cuda
from oddsmith.model.logprobs.attention import dense_forest_attention
from oddsmith.model.logprobs.attention import flash as attention_flash
from oddsmith.model.logprobs.attention import flex as attention_flex
from oddsmith.model.logprobs.attention.cuda import Kind
from oddsmith.model.logprobs.attention.flash import flash_forest_attention, flash_takes
from oddsmith.model.logprobs.attention.flex import BLOCK, LEAST_ROWS, block_mask, flex_forest_attention

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


def flash_as_documented(query_THC, key_KGC, value_KGC, forest, scaling, window, softcap=0.0, *, top_left=False):
    """flash-attention's words on ``causal``, ``window_size`` and ``softcap``, in plain torch.

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
        own = torch.arange(query.shape[1])[:, None] + (0 if top_left else key.shape[1] - query.shape[1])
        column = torch.arange(key.shape[1])
        hidden = (column > own + right) | ((column < own - left) if left >= 0 else False)
        scores = query @ key.transpose(1, 2) * scaling
        scores = softcap * torch.tanh(scores / softcap) if softcap else scores
        outs.append((scores.masked_fill(hidden, float("-inf")).softmax(-1) @ value).transpose(0, 1))
        query_start, key_start = query_end, key_end
    return torch.cat(outs)


@pytest.mark.parametrize("options", [{}, {"window": 1}, {"window": 3}, {"softcap": 0.7}], ids=str)
@pytest.mark.parametrize(("channels", "value_channels"), [(8, 8), (8, 6), (6, 6), (3, 9)])
def test_paths_as_sequences_of_flash_attention_agree_with_the_whole_mask(options, channels, value_channels):
    @given(sequences=sequences)
    @settings(max_examples=8)
    def agrees(sequences):
        layout = layout_of(sequences)
        sizes = {"channels": channels, "value_channels": value_channels}
        tensors = random_heads(len(layout.depth_T), torch.float64, **sizes, requires_grad=True)
        attend = partial(flash_forest_attention, flash_as_documented)
        assert_same_values_and_gradients(attend, tensors, layout, 1e-9, scaling=0.4, **options)

    agrees()


@pytest.mark.parametrize("groups", [4, 2])
def test_the_arguments_of_varlen_attn_are_those_it_takes(groups):
    """On the meta device PyTorch checks them and works out the shape."""
    layout = long_forest(0)
    query, key, value = (t[0].transpose(0, 1).to("meta") for t in random_heads(9, torch.bfloat16, groups=groups))
    out = attention_flash._by_torch(query, key, value, layout, 0.4, (-1, 0))
    assert out.shape == query.shape


def test_an_argument_that_pytorch_does_not_have_is_left_out(monkeypatch):
    """2.11 has no ``enable_gqa``."""
    seen = {}

    def of_2_11(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=None):
        seen.update(max_q=max_q, max_k=max_k, scale=scale, window_size=window_size)
        return query

    layout = layout_of([[1, 2, 3], [1, 2, 4, 5]])
    monkeypatch.setattr(attention_flash, "varlen_attn", of_2_11)
    attention_flash._varlen_takes_enable_gqa.cache_clear()
    try:
        query, key, value = (t[0].transpose(0, 1) for t in random_heads(5, torch.bfloat16))
        attention_flash._by_torch(query, key, value, layout, 0.4, (2, 0))
    finally:
        attention_flash._varlen_takes_enable_gqa.cache_clear()
    assert seen == {"max_q": 3, "max_k": 4, "scale": 0.4, "window_size": (2, 0)}
    assert "window_size" in inspect.signature(varlen_attn).parameters


@pytest.mark.parametrize(
    ("dtype", "channels", "value_channels", "taken"),
    (
        (torch.bfloat16, 128, 128, True),
        (torch.float16, 256, 256, True),
        (torch.bfloat16, 192, 128, True),
        (torch.bfloat16, 80, 80, True),
        (torch.bfloat16, 100, 100, True),
        (torch.bfloat16, 64, 128, True),
        (torch.bfloat16, 512, 512, False),
        (torch.bfloat16, 128, 264, False),
        (torch.float32, 64, 64, False),
    ),
)
def test_which_heads_are_for_the_flash_kernel(dtype, channels, value_channels, taken):
    assert flash_takes(attention_flash._by_torch, dtype, channels, value_channels, capped=False) is taken
    assert not flash_takes(attention_flash._by_torch, dtype, channels, value_channels, capped=True)


def test_soft_caps_are_for_flash_attn_where_it_has_them():
    def of_2_5(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale, causal, window_size):
        pass

    def of_2_8(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale, causal, window_size, softcap
    ):
        pass

    def takes(function, **options):
        kernel = partial(attention_flash._by_flash_attn, function)
        return flash_takes(kernel, torch.bfloat16, 128, 128, **options)

    assert takes(of_2_5, capped=False)
    assert not takes(of_2_5, capped=True)
    assert takes(of_2_8, capped=True)


def test_flash_attn_is_deterministic_where_torch_is(monkeypatch):
    def attend(query, key, value, *lengths, **options):
        return options

    forest = SimpleNamespace(query_ends_P=None, key_ends_P=None, longest_path=1, longest_keys=1)
    call = partial(attention_flash._by_flash_attn, attend, None, None, None, forest, 1.0, (-1, 0))
    assert "deterministic" not in call()
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert call()["deterministic"] is True


# ---- The choice of a kernel, on a device whose kernels are given here


def kind_of(dtype=torch.float32, **others):
    sizes = {"heads": 4, "groups": 2, "channels": 16, "value_channels": 16}
    extras = {"windowed": False, "chunked": False, "softcap": None, "has_sinks": False}
    return Kind(torch.device("cpu"), dtype, **sizes | extras | others)


@pytest.fixture
def kernels(monkeypatch, uncompiled):
    """Flash kernels of this machine, by name, in float32 too."""
    there = {}
    monkeypatch.setattr(attention_cuda, "flash_kernels", lambda device: there)
    monkeypatch.setattr(attention_cuda, "flash_takes", lambda kernel, *heads, capped: True)
    attention_cuda.chosen_attention.cache_clear()
    yield there
    attention_cuda.chosen_attention.cache_clear()


def said(caplog):
    return [record.getMessage() for record in caplog.records if record.name.startswith("oddsmith")]


def forest_tensors(**others):
    layout = long_forest(3, longest=60)
    return layout, random_heads(len(layout.depth_T), torch.float32, channels=16, requires_grad=True, **others)


@pytest.mark.parametrize("windowed", [False, True])
def test_a_kernel_that_is_right_is_taken(kernels, windowed, caplog):
    kernels["flash"] = flash_as_documented
    chosen = attention_cuda.chosen_attention(kind_of(windowed=windowed))
    assert (chosen.func, chosen.args) == (flash_forest_attention, (flash_as_documented,))
    assert not said(caplog)


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("windowed", [False, True])
def test_a_kernel_that_masks_otherwise_is_not_used(kernels, windowed, caplog):
    """Causal at the top left, as cuDNN's and AMD's: a query of a path sees the first of its ancestors only."""
    kernels["flash"] = partial(flash_as_documented, top_left=True)
    layout, tensors = forest_tensors()
    options = {"scaling": 0.4, "window": 20 if windowed else None}
    assert_same_values_and_gradients(attention_cuda.cuda_forest_attention, tensors, layout, 1e-4, **options)
    assert attention_cuda.chosen_attention(kind_of(windowed=windowed)) is flex_forest_attention
    [message] = said(caplog)
    assert message.startswith("Attention of heads of 16 in float32")
    assert "flash is not used here: its values or gradients differ from those of the whole mask by" in message


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_a_kernel_whose_gradient_alone_is_wrong_is_not_used(kernels):
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, out):
            return out.view_as(out)

        @staticmethod
        def backward(ctx, d_out):
            return d_out * 1.1

    kernels["flash"] = lambda *args: Wrong.apply(flash_as_documented(*args))
    assert attention_cuda.chosen_attention(kind_of()) is flex_forest_attention


OVER = "No valid triton configs. OutOfResources: out of resource: shared memory, Required: 147968, limit: 101376."


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_where_tiles_do_not_fit_smaller_ones_are_taken_then_the_whole_mask(kernels, monkeypatch, caplog):
    """In the forward or in the backward pass, which would otherwise end the first step."""

    class OverInBackward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, query):
            return query.view_as(query)

        @staticmethod
        def backward(ctx, d_query):
            raise RuntimeError(OVER)

    too_large = [False]

    def small_card(query, *args, smallest=False, **options):
        if smallest in too_large:
            query = OverInBackward.apply(query)
        return flex_forest_attention(query, *args, smallest=smallest, **options)

    monkeypatch.setattr(attention_cuda, "flex_forest_attention", small_card)
    chosen = attention_cuda.chosen_attention(kind_of(softcap=2.0))
    assert chosen.keywords == {"smallest": True}
    [message] = said(caplog)
    assert message.startswith("Attention of heads of 16 in float32 with a soft cap: FlexAttention is not used here:")
    assert message.endswith("a kernel needs more shared memory or registers than this GPU has.")

    too_large.append(True)
    caplog.clear()
    attention_cuda.chosen_attention.cache_clear()
    assert attention_cuda.chosen_attention(kind_of(softcap=2.0)) is dense_forest_attention
    assert "is computed with the whole mask, as no kernel runs here: its memory grows with" in said(caplog)[-1]


@pytest.mark.parametrize(
    "error",
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), RuntimeError("CUDA error: unspecified")),
)
def test_what_the_device_lacks_is_not_the_kernel_s_fault(kernels, error):
    def fails(*args):
        raise error

    kernels["flash"] = fails
    with pytest.raises(type(error), match="CUDA"):
        attention_cuda.chosen_attention(kind_of())


def test_a_trial_is_made_once_for_a_kind_whatever_surrounds_the_layer(kernels):
    """A backward pass inside of a checkpointed forward pass would run the layers again, and no_grad has none."""
    calls = []

    def counted(*args):
        calls.append((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        return flash_as_documented(*args)

    kernels["flash"] = counted
    layout, tensors = forest_tensors()

    def layer(query):
        return attention_cuda.cuda_forest_attention(query, *tensors[1:], layout, scaling=0.4).sum()

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        layer(tensors[0].detach())
    checkpoint(layer, tensors[0], use_reentrant=False).backward()
    assert calls == [(True, False), (False, True), (True, False), (True, False)]
    attention_cuda.chosen_attention.cache_clear()
    checkpoint(layer, tensors[0], use_reentrant=False).backward()


@pytest.mark.parametrize("channels", [64, 128])
@pytest.mark.parametrize(
    ("capability", "shared_kib", "dtype", "held_bytes"),
    [
        ((7, 5), 64, torch.float16, 4),  # T4: Triton multiplies float32 numbers there
        ((8, 6), 99, torch.bfloat16, 2),
        ((8, 6), 99, torch.float32, 4),
        ((9, 0), 227, torch.bfloat16, 2),
    ],
)
def test_tiles_fit_the_shared_memory_of_a_card(monkeypatch, capability, shared_kib, dtype, held_bytes, channels):
    """What kernels compiled for such cards need (`make test-kernels`; for a T4 once by hand)."""
    properties = SimpleNamespace(major=capability[0], shared_memory_per_block_optin=shared_kib << 10)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    attention_flex.kernel_options.cache_clear()
    options = attention_flex.kernel_options(torch.device("cuda"), dtype, channels)
    attention_flex.kernel_options.cache_clear()
    keys_and_values = options["fwd_BLOCK_N"] * max(1, 2 * (options["fwd_num_stages"] - 1))
    forward, backward = options["fwd_BLOCK_M"] + keys_and_values, 4 * options["bwd_BLOCK_M1"]
    for rows in (forward, backward):
        assert 16 << 10 <= rows * channels * held_bytes <= (shared_kib - 8) << 10


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
    rows = max(len(layout.depth_T), LEAST_ROWS)
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
    monkeypatch.setattr(attention_flex, "_compiled", lambda: flex_attention)
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


@pytest.mark.parametrize("rows", [1, 3, 127, 129, 300])
@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_short_rows_are_padded_and_nothing_is_seen_of_it(uncompiled, rows):
    layout = layout_of([[*range(rows - 1), 1], [*range(rows // 2), 0]])
    tensors = random_heads(len(layout.depth_T), torch.float64, channels=16, requires_grad=True)
    options = {"scaling": 0.4, "window": 2, "sinks": torch.zeros(4, dtype=torch.float64, requires_grad=True)}
    assert_same_values_and_gradients(flex_forest_attention, (*tensors, options["sinks"]), layout, 1e-9, **options)


# What a model's layers may ask for: Gemma 3's windows and full layers with other heads, Gemma 2's soft cap, Llama 4's
# chunks, gpt-oss's sinks.
SHAPES = ({"heads": 8, "groups": 4, "channels": 16}, {"heads": 4, "groups": 2, "channels": 32})
# Tokens of forests of 1, 2, 3, 4 and 8 blocks: 4 and 8 are as many as heads, 384 tokens as many as the least. (More,
# with the backward pass, as a GPU compiles it: tests/kernels/test_flex.py)
ROWS = (3, 129, 384, 512, 1024)
EXTRAS = (({}, {"window": 50}, {"chunk": 60}), ({"softcap": 2.0},), ({"sinks": True}, {"window": 50, "sinks": True}))


def without_computing(graph, inputs):
    """A compiler whose result is as large as FlexAttention's."""
    [results] = (node.args[0] for node in graph.graph.nodes if node.op == "output")

    def call(*inputs):
        query = next(t for t in inputs if isinstance(t, torch.Tensor) and t.dim() == 4 and t.is_floating_point())
        return (query.clone(), query[..., 0].clone())[: len(results)]

    return call


@pytest.mark.parametrize("extras", EXTRAS, ids=("plain", "soft cap", "sinks"))
def test_one_mask_serves_all_layers_and_one_graph_all_forests(monkeypatch, extras):
    """Every graph is a kernel to compile, and behind the eighth PyTorch stops compiling."""
    compiled = torch.compile(flex_attention, dynamic=True, fullgraph=True, backend=without_computing)
    monkeypatch.setattr(attention_flex, "_compiled", lambda: compiled)
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *tensors: None)
    torch._dynamo.reset()
    block_mask.cache_clear()
    before = counters["stats"]["unique_graphs"]
    forests = [layout_of([range(rows - rows // 3), [*range(rows // 3), *range(-rows // 3, 0)]]) for rows in ROWS]
    for layout, train in itertools.product(forests, (True, False)):
        for shape, options in itertools.product(SHAPES, extras):
            tensors = random_heads(len(layout.depth_T), torch.float32, **shape, requires_grad=train)
            sinks = torch.zeros(shape["heads"], requires_grad=train) if "sinks" in options else None
            with torch.set_grad_enabled(train):
                flex_forest_attention(*tensors, layout, scaling=0.4, **options | {"sinks": sinks})
    masks = {(options.get("window"), options.get("chunk")) for options in extras}
    assert block_mask.cache_info().misses == len(forests) * len(masks)
    assert counters["stats"]["unique_graphs"] - before == 2 * len(SHAPES)
