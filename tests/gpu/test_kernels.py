"""Triton kernels against their references, as the GPU compiles them: also bf16, large rows, and offsets past 2^31.

On the CPU Triton's interpreter runs a small part; ``tests/kernels`` does that for all shapes.
"""

from contextlib import nullcontext

import pytest
import torch

pytest.importorskip("triton", reason="Triton is there on Linux alone")

from oddsmith.model.logprobs.kernels import (
    gated,
    gated_triton,
    head,
    head_triton,
    kernels_take,
    norm,
    norm_triton,
    rotary,
    rotary_triton,
)
from tests.kernels.interpreter import interpreted

from .devices import NEEDS_GPU, on_devices, skip_without

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SHAPES = [(7, 96), (1, 1), (300, 4096), (4097, 896), (64, 14336), (33, 16384)]  # rows, columns


def random(device, *shapes, dtype, seed=0):
    generator = torch.Generator(device).manual_seed(seed)
    return [torch.randn(shape, generator=generator, device=device).to(dtype) for shape in shapes]


def running(device):
    """Where the launching functions run: on a GPU, or in the interpreter."""
    return interpreted() if device == "cpu" else nullcontext()


def assert_near(found, expected, summands=1.0, ulps=4):
    """Within some roundings of the dtype, of the largest number or of what was added up to it."""
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        scale = max(summands, theirs.double().abs().max().item())
        error = (ours.double() - theirs.double()).abs().max().item() / scale
        assert error <= ulps * torch.finfo(ours.dtype).eps, f"{error:.2g}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("device", "shape"), on_devices(SHAPES))
def test_norm(device, shape, dtype):
    _skip(device, dtype)
    for scale in norm.Scale:
        (x, grad), (weight,) = random(device, shape, shape, dtype=dtype), random(device, shape[1:], dtype=dtype, seed=1)
        with running(device):
            y, inverse = norm_triton.norm(x, weight, 1e-5, scale)
            again = norm_triton.norm_again(x, weight, inverse, scale, y.dtype)
            grad_x, sums = norm_triton.norm_backward(x, grad, weight, inverse, scale, True)
        expected_y, expected_inverse = norm.reference_norm(x, weight, 1e-5, scale)
        assert torch.equal(again, y)
        assert_near((inverse,), (expected_inverse,))
        assert_near((y,), (expected_y,))
        wide = x.float(), grad.float(), weight.float(), inverse, scale, True
        exact_x, exact_sums = norm.reference_norm_backward(*wide)
        assert_near((grad_x,), (exact_x.to(dtype),), summands=(grad.float() * inverse).abs().max().item())
        assert_near(
            (sums.sum(0),), (exact_sums.sum(0),), summands=(grad * x * inverse).float().abs().sum(0).max().item()
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("device", "shape"), on_devices(SHAPES))
def test_gated_product(device, shape, dtype):
    _skip(device, dtype)
    for activation in gated.Activation:
        gate, up, grad = random(device, shape, shape, shape, dtype=dtype)
        with running(device):
            found = gated_triton.gated(gate, up, activation), *gated_triton.gated_backward(gate, grad, up, activation)
        wide = gate.float(), up.float(), activation
        exact = gated.reference_gated(*wide), *gated.reference_gated_backward(wide[0], grad.float(), *wide[1:])
        assert_near(found, [tensor.to(dtype) for tensor in exact], ulps=16)


# Batch, tokens, query heads, key heads, channels, rotated channels
ROTARY = [(1, 5, 4, 2, 24, 10), (1, 777, 32, 8, 128, 128), (2, 300, 14, 2, 64, 64), (1, 130, 16, 8, 256, 64)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("device", "sizes"), on_devices(ROTARY))
def test_rotary(device, sizes, dtype):
    _skip(device, dtype)
    B, T, H, G, C, R = sizes
    query, key = (x.transpose(1, 2) for x in random(device, (B, T, H, C), (B, T, G, C), dtype=dtype))
    cos, sin = random(device, (1, T, R), (1, T, R), dtype=dtype, seed=1)
    with running(device):
        found = rotary_triton.rotary(query, key, cos, sin)
        grads = rotary_triton.rotary_backward(query, key, cos, sin, dtype)
    assert_near(found, rotary.reference_rotary(query, key, cos, sin))
    assert_near(grads, rotary.reference_rotary_backward(query, key, cos, sin, dtype))


HEADS = [(3, 700), (64, 128256), (500, 151936), (17, 262144), (40, 50257)]  # rows, vocabulary


@pytest.mark.parametrize("soft_cap", [None, 30.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("device", "shape"), on_devices(HEADS))
def test_log_probabilities_and_residuals(device, shape, dtype, soft_cap):
    _skip(device, dtype)
    z = 3 * random(device, shape, dtype=dtype)[0]
    target = torch.arange(shape[0], device=device) * 7919 % shape[1]
    expected = torch.empty_like(z)
    exact = head.target_logps_reference(z, target, 1.0, soft_cap, expected)
    with running(device):
        alone = head_triton.target_logps(z, target, 1.0, soft_cap, None)
        logps = head_triton.target_logps(z, target, 1.0, soft_cap, z)  # the residuals take its place
    assert torch.equal(alone, logps)
    torch.testing.assert_close(logps, exact, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(z, expected, rtol=4 * torch.finfo(dtype).eps + 5e-6, atol=1.3e-7)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=NEEDS_GPU)])
def test_offsets_beyond_two_to_the_31(device):
    """Rows x vocabulary passes 2^31 numbers, as in 16,400 rows of a vocabulary of 131,072; the last rows count."""
    rows, vocabulary = 16400, 131072
    if torch.cuda.mem_get_info()[0] < 3 * rows * vocabulary * 2:
        pytest.skip("needs 13 GB of free GPU memory")
    z = torch.zeros(rows, vocabulary, device=device, dtype=torch.bfloat16)
    z[-4:] = 3 * random(device, (4, vocabulary), dtype=torch.bfloat16)[0]
    target = torch.full((rows,), vocabulary - 1, device=device)
    last = z[-4:].clone()
    logps = head.target_logps(z, target, 1.0, None, z)
    expected = torch.empty_like(last)
    exact = head.target_logps_reference(last, target[-4:], 1.0, None, expected)
    torch.testing.assert_close(logps[-4:], exact, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(z[-4:], expected, rtol=0.04, atol=1.3e-7)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
def test_a_gpu_gets_kernels_and_a_cpu_references(device):
    x, weight = random(device, (3, 64), (64,), dtype=torch.float32)
    assert kernels_take(x) == (device == "cuda")
    y, _ = norm.norm(x, weight, 1e-5, norm.Scale.AFTER_CAST)
    assert_near((y,), norm.reference_norm(x, weight, 1e-5, norm.Scale.AFTER_CAST)[:1])


def _skip(device, dtype):
    skip_without(device, dtype)
    if device == "cpu" and dtype == torch.bfloat16:
        pytest.skip("the interpreter is not exact in bf16")
