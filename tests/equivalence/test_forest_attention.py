"""Tree attention against its dense reference, and that against each sequence on its own: values and gradients."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oddsmith.batching.forest import pack
from oddsmith.model.logprobs.attention import cpu as attention_cpu
from oddsmith.model.logprobs.attention import dense_forest_attention
from oddsmith.model.logprobs.attention.cpu import paths_forest_attention

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 4e-2}
SINKS = [-30.0, 0.0, 1.5, 30.0]  # of four heads
# Few token ids, so that sequences share beginnings often.
sequences = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=6)


def random_heads(rows, dtype, heads=4, groups=2, channels=8, value_channels=8):
    generator = torch.Generator().manual_seed(rows)
    return tuple(
        torch.randn(1, n, rows, width, generator=generator).to(dtype).requires_grad_()
        for n, width in ((heads, channels), (groups, channels), (groups, value_channels))
    )


def values_and_gradients(attend, tensors, layout, sinks=None, **options):
    if sinks is not None:
        options["sinks"] = torch.tensor(sinks, dtype=tensors[0].dtype, requires_grad=True)
    out = attend(*tensors, layout, scaling=0.4, **options)
    tensors = tensors if sinks is None else (*tensors, options["sinks"])
    return out, torch.autograd.grad(out, tensors, torch.linspace(-1, 1, out.numel()).reshape(out.shape).to(out.dtype))


def assert_same(ours, reference, tolerance):
    ours, reference = (ours[0], *ours[1]), (reference[0], *reference[1])
    # One scale for all: the query's gradient of a token that sees only itself is a difference of equal numbers.
    scale = max(torch.linalg.vector_norm(tensor.double()) for tensor in reference)
    for one, other in zip(ours, reference, strict=True):
        assert torch.linalg.vector_norm((one - other).double()) <= tolerance * scale


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("options", [{}, {"window": 3, "sinks": SINKS}, {"window": 3, "chunk": 5}], ids=str)
@given(sequences=sequences)
def test_paths_agree_with_the_whole_mask(dtype, options, sequences):
    _, _, layout = pack([np.array(sequence) for sequence in sequences])
    tensors = random_heads(len(layout.depth_T), dtype)
    assert_same(
        values_and_gradients(paths_forest_attention, tensors, layout, **options),
        values_and_gradients(dense_forest_attention, tensors, layout, **options),
        TOLERANCE[dtype],
    )


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("options", [{}, {"window": 100}, {"chunk": 100}, {"sinks": SINKS}], ids=str)
@pytest.mark.parametrize("max_saved_keys", [0, 512], ids=["weights computed again", "weights saved"])
def test_paths_agree_with_the_whole_mask_over_several_blocks_of_queries(dtype, options, max_saved_keys, monkeypatch):
    monkeypatch.setattr(attention_cpu, "_MAX_SAVED_KEYS", max_saved_keys)
    generator = np.random.default_rng(0)
    prompt = generator.integers(0, 50, 150)
    _, _, layout = pack([np.concatenate([prompt, generator.integers(0, 50, n)]) for n in (300, 140)])
    tensors = random_heads(len(layout.depth_T), dtype, value_channels=12)
    assert_same(
        values_and_gradients(paths_forest_attention, tensors, layout, **options),
        values_and_gradients(dense_forest_attention, tensors, layout, **options),
        TOLERANCE[dtype],
    )


def test_a_backward_pass_inside_of_autocast_rounds_nothing():
    _, _, layout = pack([np.array([0, 1, 2]), np.array([0, 1, 1, 2])])
    tensors = random_heads(len(layout.depth_T), torch.float32)
    out = paths_forest_attention(*tensors, layout, scaling=0.4)
    expected = torch.autograd.grad(out.square().sum(), tensors, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(out.square().sum(), tensors)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_weights_are_saved_where_rows_are_short_and_gradients_are_needed():
    def saved_blocks(rows):
        _, _, layout = pack([np.arange(rows)])
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: sizes.append(tensor.numel()), lambda tensor: tensor
        ):
            paths_forest_attention(*random_heads(rows, torch.float32, heads=2, groups=1), layout, scaling=1.0)
        return len(sizes) - 4  # queries, keys, values and the result

    assert saved_blocks(300) == 3  # a block of 128 queries each
    assert saved_blocks(1300) == 0
    with torch.no_grad():
        assert saved_blocks(300) == -4


@pytest.mark.parametrize("autocast", [False, True])
def test_large_scores_in_bfloat16_are_as_exact_as_their_weights(autocast):
    """Rounded to bfloat16, a score of 60 would be off by up to 0.125, and its weight by 13%."""
    _, _, layout = pack([np.arange(200)])
    tensors = random_heads(200, torch.bfloat16, channels=64)
    exact = dense_forest_attention(*(tensor.double() for tensor in tensors), layout, scaling=2.0)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours = paths_forest_attention(*tensors, layout, scaling=2.0)
    assert torch.linalg.vector_norm(ours - exact) < 0.005 * torch.linalg.vector_norm(exact)


@pytest.mark.parametrize("seen", [{}, {"window": 3}, {"chunk": 4}], ids=str)
@given(sequences=sequences)
def test_a_token_sees_what_it_sees_in_its_own_sequence(seen, sequences):
    sequences = [np.array(sequence) for sequence in sequences]
    _, rows_of, layout = pack(sequences)
    query, key, value = random_heads(len(layout.depth_T), torch.float64)
    out = dense_forest_attention(query, key, value, layout, scaling=0.4, **seen)
    for rows in rows_of:
        alone = dense_forest_attention(
            query[:, :, rows], key[:, :, rows], value[:, :, rows], pack([np.arange(len(rows))])[2], scaling=0.4, **seen
        )  # fmt: skip
        assert torch.allclose(out[:, rows], alone, rtol=0, atol=1e-12)


def test_a_sink_takes_its_share_of_the_weights_and_a_chunk_starts_anew():
    """Equal scores: the sink of score log 2 counts as two more keys, so of 1, 2, 3 keys there remain 1/3, 2/4, 3/5."""
    _, _, layout = pack([np.arange(6)])
    query, key, value = (torch.zeros(1, 1, 6, 8), torch.zeros(1, 1, 6, 8), torch.ones(1, 1, 6, 8))
    sinks = torch.tensor([2.0]).log()
    out = dense_forest_attention(query, key, value, layout, scaling=1.0, chunk=3, sinks=sinks)
    assert torch.allclose(out[0, :, 0, 0], torch.tensor([1 / 3, 2 / 4, 3 / 5] * 2))


def test_a_soft_cap_bounds_the_scores():
    _, _, layout = pack([np.arange(6)])
    query, key, value = random_heads(6, torch.float64)
    capped = dense_forest_attention(query * 1e3, key, value, layout, scaling=1.0, softcap=1e-9)
    mean = torch.stack([value[0, :, : i + 1].mean(1) for i in range(6)])  # scores all but equal
    assert torch.allclose(capped[0, :, ::2], mean, atol=1e-6)
