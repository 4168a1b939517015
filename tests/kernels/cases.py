"""Launches of the project's Triton kernels, as a step makes them: the largest tiles that a real model asks for.

Each calls the function that launches the kernels, on tensors of the CPU whose types and widths are a model's; few rows
are enough, for nothing is run (``cards.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from oddsmith.model.logprobs.kernels import gated_triton, head_triton, norm_triton, rotary_triton
from oddsmith.model.logprobs.kernels.gated import Activation
from oddsmith.model.logprobs.kernels.norm import Scale

LAUNCHES: dict[str, Callable[[], object]] = {}


def _norms(dtype: torch.dtype, weight_dtype: torch.dtype, width: int) -> None:
    """Forward pass, recomputed output and backward pass."""
    x, weight = torch.empty(512, width, dtype=dtype), torch.empty(width, dtype=weight_dtype)
    y, inverse = norm_triton.norm(x, weight, 1e-6, Scale.AFTER_CAST)
    norm_triton.norm_again(x, weight, inverse, Scale.AFTER_CAST, torch.bfloat16)
    for needs_weight in (False, True):
        norm_triton.norm_backward(x, y, weight, inverse, Scale.AFTER_CAST, needs_weight)


def _gated_products(dtype: torch.dtype) -> None:
    for activation in Activation:
        gate, up = torch.empty(8, 2 * 14336, dtype=dtype).chunk(2, -1)
        y = gated_triton.gated(gate, up, activation)
        gated_triton.gated_backward(gate, y, up, activation)


def _rotations(heads: int, key_heads: int, channels: int, dtype: torch.dtype) -> None:
    query, key = (torch.empty(1, 8, count, channels, dtype=dtype).transpose(1, 2) for count in (heads, key_heads))
    cos = torch.empty(1, 8, channels, dtype=dtype)
    rotary_triton.rotary(query, key, cos, cos)
    rotary_triton.rotary_backward(query, key, cos, cos, dtype)


def _logps(vocabulary: int, dtype: torch.dtype) -> None:
    """With and without residuals and a soft cap."""
    z = torch.empty(8, -(-vocabulary // 64) * 64, dtype=dtype)[:, :vocabulary]
    target = torch.zeros(8, dtype=torch.int64)
    for soft_cap in (None, 30.0):
        for residual in (None, z):
            head_triton.target_logps(z, target, 1.0, soft_cap, residual)


BF16, FP32 = torch.bfloat16, torch.float32
LAUNCHES |= {
    "norm, 8B with LoRA": partial(_norms, BF16, BF16, 4096),
    "norm, 0.5B": partial(_norms, FP32, FP32, 896),
    "norm of heads": partial(_norms, BF16, FP32, 128),
    "norm, 405B": partial(_norms, BF16, BF16, 16384),
    "gated product, bf16": partial(_gated_products, BF16),
    "gated product, float32": partial(_gated_products, FP32),
    "rotary, 8B": partial(_rotations, 32, 8, 128, BF16),
    "rotary, 9B, heads of 256": partial(_rotations, 16, 8, 256, BF16),
    "rotary, 405B, float32": partial(_rotations, 128, 8, 128, FP32),
    "log-probabilities, GPT-2": partial(_logps, 50257, torch.float16),
    "log-probabilities, Llama 3": partial(_logps, 128256, BF16),
    "log-probabilities, Gemma 2": partial(_logps, 256000, FP32),
}
