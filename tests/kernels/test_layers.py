"""Kernels of norms, gated products and rotary embeddings against their references, by Triton's interpreter.

Also fake tensors: the operators' own results have the shapes, strides and dtypes of the kernels'.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="Triton is there on Linux alone")

from oddsmith.model.logprobs.kernels import gated, gated_triton, norm, norm_triton, rotary, rotary_triton

from .interpreter import interpreted

DTYPES = [torch.float32, torch.float16]
shapes = st.lists(st.integers(1, 4), min_size=1, max_size=2).map(tuple)
few = settings(max_examples=3, deadline=None)


def random(*shapes, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def assert_near(found, expected, *, ulps=2, summands=1.0):
    """Each of a tuple within so many roundings of its dtype, of the largest number, or of what was added up to it."""
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        scale = max(summands, theirs.double().abs().max().item())
        assert (ours.double() - theirs.double()).abs().flatten().max() <= ulps * torch.finfo(ours.dtype).eps * scale


def assert_laid_out_alike(found, empty):
    assert [(t.shape, t.stride(), t.dtype) for t in found] == [(t.shape, t.stride(), t.dtype) for t in empty]


@pytest.mark.parametrize("scale", norm.Scale)
@pytest.mark.parametrize("weight_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@few
@given(shape=shapes, width=st.sampled_from([1, 33, 128, 700, 2100]), seed=st.integers(0, 99))
def test_norm(scale, dtype, weight_dtype, shape, width, seed):
    (x,), (weight,) = (
        random((*shape, width), seed=seed, dtype=dtype),
        random((width,), seed=seed + 1, dtype=weight_dtype),
    )
    with interpreted():
        y, inverse = norm_triton.norm(x, weight, 1e-5, scale)
        assert_near((inverse,), norm.reference_norm(x, weight, 1e-5, scale)[1:])
        # To the bit from the same 1 / rms, which says where y is rounded; and what is recomputed is what was computed.
        for as_dtype in (y.dtype, torch.float16):
            again = norm_triton.norm_again(x, weight, inverse, scale, as_dtype)
            assert torch.equal(again, norm.reference_norm_again(x, weight, inverse, scale, as_dtype))
            assert torch.equal(again, y.to(as_dtype))
        (grad,) = random(y.shape, seed=seed + 2, dtype=y.dtype)
        grad_x, grad_weight = norm_triton.norm_backward(x, grad, weight, inverse, scale, True)
        alone, none = norm_triton.norm_backward(x, grad, weight, inverse, scale, False)
    expected = norm.reference_norm_backward(x, grad, weight, inverse, scale, True)
    exact = norm.reference_norm_backward(x.float(), grad.float(), weight.float(), inverse, scale, True)
    summed = (grad.float() * x.float() * inverse).abs().sum().item()
    assert_near((grad_weight.sum(0),), (expected[1].sum(0),), summands=summed)
    spread = 20 * torch.finfo(torch.float32).eps * (grad.float() * inverse).abs().max() * (1 + weight.abs().max())
    assert ((grad_x.float() - exact[0]).abs() <= spread + torch.finfo(dtype).eps * exact[0].abs() + 1e-7).all()
    assert torch.equal(alone, grad_x)
    assert none.shape == (0, width)
    assert_laid_out_alike((y, inverse), norm._empty_norm(x, weight, 1e-5, scale))
    assert_laid_out_alike((grad_x, grad_weight), norm._empty_norm_backward(x, grad, weight, inverse, scale, True))


@pytest.mark.parametrize("activation", gated.Activation)
@pytest.mark.parametrize("dtype", DTYPES)
@few
@given(shape=shapes, width=st.sampled_from([1, 33, 1024, 1100]), halves=st.booleans(), seed=st.integers(0, 99))
def test_gated_product(activation, dtype, shape, width, halves, seed):
    """Gate and up are two tensors, or halves of one."""
    both, grad = random((*shape, 2 * width), (*shape, width), seed=seed, dtype=dtype)
    gate, up = (3 * both).chunk(2, -1)
    if not halves:
        gate, up = gate.contiguous(), up.contiguous()
    with interpreted():
        y = gated_triton.gated(gate, up, activation)
        grads = gated_triton.gated_backward(gate, grad, up, activation)
    double = gate.double(), up.double()
    exact = gated.reference_gated(*double, activation)
    exact_grads = gated.reference_gated_backward(double[0], grad.double(), double[1], activation)
    assert_near((y, *grads), [t.to(dtype) for t in (exact, *exact_grads)], ulps=16)
    assert_laid_out_alike(
        (y, *grads),
        (gated._empty_gated(gate, up, activation), *gated._empty_gated_backward(gate, grad, up, activation)),
    )


@pytest.mark.parametrize("cos_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@few
@given(
    sizes=st.tuples(st.integers(1, 2), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3)),
    channels=st.sampled_from([(8, 8), (24, 24), (24, 10), (16, 2)]),
    one=st.booleans(),
    seed=st.integers(0, 99),
)
def test_rotary(dtype, cos_dtype, sizes, channels, one, seed):
    """Heads in groups, some channels or all of them; ``cos`` and ``sin`` for each row of the batch or for all."""
    (B, T, G, groups), (C, R) = sizes, channels
    query, key, grad_query, grad_key = (
        x.transpose(1, 2)
        for x in random((B, T, groups * G, C), (B, T, G, C), (B, T, groups * G, C), (B, T, G, C), seed=seed)
    )
    cos, sin = random(*[(1 if one else B, T, R)] * 2, seed=seed + 1, dtype=cos_dtype)
    query, key = query.to(dtype), key.to(dtype)
    with interpreted():
        found = rotary_triton.rotary(query, key, cos, sin)
        grads = rotary_triton.rotary_backward(grad_query.to(found[0].dtype), grad_key.contiguous(), cos, sin, dtype)
    expected = rotary.reference_rotary(query, key, cos, sin)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))  # the interpreter fuses nothing
    assert_near(
        grads, rotary.reference_rotary_backward(grad_query.to(found[0].dtype), grad_key, cos, sin, dtype), ulps=1
    )
    assert_laid_out_alike(found, rotary._empty_rotary(query, key, cos, sin))


def test_no_rows():
    x = torch.empty(0, 8)
    with interpreted():
        y, inverse = norm_triton.norm(x, torch.ones(8), 1e-5, norm.Scale.AFTER_CAST)
        assert y.shape == (0, 8)
        grad_x, grad_weight = norm_triton.norm_backward(x, x, torch.ones(8), inverse, norm.Scale.AFTER_CAST, True)
        assert (grad_x.shape, grad_weight.shape) == ((0, 8), (0, 8))
        assert gated_triton.gated(x, x, gated.Activation.SILU).shape == (0, 8)


@pytest.mark.slow
def test_partial_sums_of_more_rows_than_programs():
    """Each program then adds up several tiles of rows."""
    x, grad = random((700, 2048), (700, 2048))
    rows = norm.partial_sums(700, 2048)
    assert rows == norm.MOST_PARTIAL_SUMS
    with interpreted():
        _, inverse = norm_triton.norm(x, torch.ones(2048), 1e-5, norm.Scale.ONE_PLUS)
        found = norm_triton.norm_backward(x, grad, torch.ones(2048), inverse, norm.Scale.ONE_PLUS, True)
    expected = norm.reference_norm_backward(x, grad, torch.ones(2048), inverse, norm.Scale.ONE_PLUS, True)
    assert found[1].shape == (rows, 2048)
    assert_near((found[0], found[1].sum(0)), (expected[0], expected[1].sum(0)), ulps=20)
