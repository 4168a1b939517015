"""What runs and compiles kernels without a GPU, on kernels whose result and need are known."""

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is there on Linux alone")
import triton.language as tl

from .cards import CARDS, compiling_for
from .interpreter import interpreted


@triton.jit
def _gated(x, y):
    return x * tl.sigmoid(y)


@triton.jit
def _gated_mean(x_ptr, out_ptr, width, BLOCK: tl.constexpr):
    row, column = tl.program_id(0), tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * width + column, mask=column < width, other=0.0).to(tl.float32)
    mean = tl.sum(_gated(x, x), axis=0) / width
    tl.store(out_ptr + row, mean)


@triton.jit
def _product(x_ptr, y_ptr, out_ptr, M: tl.constexpr, N: tl.constexpr):
    m, n = tl.arange(0, M), tl.arange(0, N)
    x, y = tl.load(x_ptr + m[:, None] * N + n[None, :]), tl.load(y_ptr + n[:, None] * M + m[None, :])
    tl.store(out_ptr + m[:, None] * M + m[None, :], tl.dot(x, y))


def gated_mean(x):
    out = torch.zeros(len(x))
    _gated_mean[(len(x),)](x, out, x.shape[1], BLOCK=triton.next_power_of_2(x.shape[1]))
    return out


def product():
    x, y = torch.ones(128, 256, dtype=torch.bfloat16), torch.ones(256, 128, dtype=torch.bfloat16)
    _product[(1,)](x, y, torch.zeros(128, 128), M=128, N=256, num_warps=8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_interpreter_computes_what_a_kernel_says(dtype):
    x = torch.randn(3, 37, generator=torch.Generator().manual_seed(0)).to(dtype)
    with interpreted():
        found = gated_mean(x)
    torch.testing.assert_close(found, torch.nn.functional.silu(x.float()).mean(1))


def test_a_kernel_is_compiled_for_each_card_also_after_it_was_interpreted(tmp_path):
    with interpreted():
        gated_mean(torch.ones(1, 4))
    for card in CARDS:
        with compiling_for(card, tmp_path) as kernels:
            gated_mean(torch.ones(2, 37))
            gated_mean(torch.ones(3, 37))  # the same kernel
            gated_mean(torch.ones(2, 37).half())
        assert [kernel.name for kernel in kernels] == ["_gated_mean", "_gated_mean"]
        assert all(kernel.registers > 0 and kernel.shared_bytes < 1024 for kernel in kernels)


def test_what_does_not_fit_a_card_is_found(tmp_path):
    """A product of 128 x 256 and 256 x 128 numbers of two bytes holds both: 2 * 64 KiB."""
    fits = []
    for card in CARDS[:2]:  # A100, RTX 3090
        with compiling_for(card, tmp_path) as kernels:
            product()
        assert kernels[0].shared_bytes >= 128 << 10
        fits.append(kernels[0].shared_bytes <= card.shared_bytes)
    assert fits == [True, False]
