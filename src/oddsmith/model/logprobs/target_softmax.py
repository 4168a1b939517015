"""From a chunk of logits to the log-probabilities of given tokens, and, in the logits' place, their gradient.

For a row of head outputs z with target y:

    logits = cap * tanh(scale * z / cap)       p = softmax(logits)       logp = log p_y
    d logp / dz = -scale * r                   r = (p - onehot(y)) * (1 - (logits / cap)^2)

p and logp are float32 (float64 from float64). The one-hot is subtracted there, before r is rounded to the dtype of z:
so the gradient of a confident token (p_y near 1) does not drown in rounding.

Shape suffixes: C entries of a chunk, R of a slice (so few that their float32 copies stay in the cache), V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .output_transform import OutputTransform

# A slice in float32, of which there are two. CPU: 2 MiB, the second-level cache of two cores, took 13% less time than
# 12 MiB. Elsewhere: few launches, and buffers that stay small beside the chunk.
_SLICE_BYTES = {"cpu": 2 << 20}
_OTHER_SLICE_BYTES = 64 << 20


def exact_dtype(dtype: torch.dtype) -> torch.dtype:
    """What sums over the vocabulary are taken in: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def logps_leaving_residuals(z_CV: Tensor, target_C: Tensor, transform: OutputTransform, *, residuals: bool) -> Tensor:
    """Take log-probabilities off the outputs of a head and leave r in their place.

    Args:
        z_CV: Output of the head; overwritten with r, or with nothing of use.
        target_C: Tokens, int64, shape [C].
        transform: What the model does after the head.
        residuals: Whether r is wanted.

    Returns:
        Natural logarithms, shape [C], float32 (float64 from float64).
    """
    C, V = z_CV.shape
    exact = exact_dtype(z_CV.dtype)
    slice_bytes = _SLICE_BYTES.get(z_CV.device.type, _OTHER_SLICE_BYTES)
    rows = max(1, min(C, slice_bytes // (V * exact.itemsize)))
    p_RV = z_CV.new_empty(rows, V, dtype=exact)
    exact_RV = None if z_CV.dtype == exact else torch.empty_like(p_RV)
    logp_C = z_CV.new_empty(C, dtype=exact)
    for first in range(0, C, rows):
        z_RV = z_CV[first : first + rows]
        target_R1 = target_C[first : first + rows].unsqueeze(1)
        R = len(z_RV)
        logits_RV = transform.apply_(z_RV if exact_RV is None else exact_RV[:R].copy_(z_RV))
        logp_C[first : first + rows] = _logps_and_probabilities(logits_RV, target_R1, p_RV[:R]).squeeze(1)
        if residuals:
            z_RV.copy_(_residuals(logits_RV, target_R1, p_RV[:R], transform))
    return logp_C


def _logps_and_probabilities(logits_RV: Tensor, target_R1: Tensor, p_RV: Tensor) -> Tensor:
    torch.softmax(logits_RV, -1, out=p_RV)
    # The largest probability is 1 / (sum of exp(logit - largest logit)): at least 1 / V, so its logarithm is good. Two
    # maxima cost a third of the exponentials that a log-softmax and its exponential would take beside the softmax's.
    return logits_RV.gather(1, target_R1) - logits_RV.amax(-1, keepdim=True) + p_RV.amax(-1, keepdim=True).log_()


def _residuals(logits_RV: Tensor, target_R1: Tensor, p_RV: Tensor, transform: OutputTransform) -> Tensor:
    """r in the place of p; the logits are used up."""
    p_RV.scatter_(1, target_R1, p_RV.gather(1, target_R1) - 1)
    if transform.soft_cap is not None:
        p_RV.mul_(logits_RV.div_(transform.soft_cap).square_().neg_().add_(1))
    return p_RV


def target_logps(z_CV: Tensor, target_C: Tensor, transform: OutputTransform) -> Tensor:
    """``log softmax(transform(z))`` at the targets, differentiable once, with r as all that is kept of z.

    Args:
        z_CV: Output of any head, floating, shape [C, V]. Stays as it is.
        target_C: Tokens, int64, shape [C].
        transform: What the model does after the head.

    Returns:
        Natural logarithms, shape [C], float32 (float64 from float64). No reduction.
    """
    return _TargetLogps.apply(z_CV, target_C, transform, torch.is_grad_enabled())


class _TargetLogps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z_CV: Tensor, target_C: Tensor, transform: OutputTransform, learns: bool) -> Tensor:
        residual_CV = z_CV.clone()
        learns = learns and ctx.needs_input_grad[0]
        logp_C = logps_leaving_residuals(residual_CV, target_C, transform, residuals=learns)
        if learns:
            ctx.save_for_backward(residual_CV)
            ctx.scale = transform.scale
        return logp_C

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logp_C: Tensor) -> tuple[Tensor, None, None, None]:
        (residual_CV,) = ctx.saved_tensors
        factor_C1 = grad_logp_C.mul(-ctx.scale).unsqueeze(1).to(residual_CV.dtype)
        return residual_CV * factor_C1, None, None, None
