"""Log-probabilities of target tokens from the output of a head, with the residuals that its gradient is made of.

For a row z of V numbers with target y (formulas in the head's ``head.py``):

    logits = cap * tanh(scale * z / cap)       logp = log softmax(logits)[y]
    r = (softmax(logits) - onehot(y)) * (1 - (logits / cap)^2)

One operator: a launch that reads z twice and writes r, 6 bytes a number in bf16, where the reference in torch moves 40;
without residuals it reads z once. Sums are float32, and r is rounded once. A row of NaN, or with infinity, gives NaN in
that row alone, as softmax does. Shape suffixes: C rows, V vocabulary, R rows of a slice.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..output_transform import OutputTransform
from . import operator


def logps_and_residuals(
    z_CV: Tensor, target_C: Tensor, transform: OutputTransform, *, residuals: bool, overwrite: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the log-probabilities of the targets, and the residuals if they are wanted.

    Args:
        z_CV: Output of a head; its rows may lie apart.
        target_C: A token for each row, int64.
        transform: What follows the head.
        residuals: Whether they are wanted.
        overwrite: ``z_CV`` is not needed any more: the residuals take its place. Its columns lie side by side then.

    Returns:
        Natural logarithms, float32 (float64 from float64), [C], and the residuals in the dtype of ``z_CV``, [C, V].
    """
    residual_CV = None
    if residuals:  # the kernel writes rows
        residual_CV = z_CV if overwrite else torch.empty_like(z_CV, memory_format=torch.contiguous_format)
    return target_logps(z_CV, target_C, transform.scale, transform.soft_cap, residual_CV), residual_CV


# ---- Plain reference


def target_logps_reference(
    z_CV: Tensor, target_C: Tensor, scale: float, soft_cap: float | None, residual_CV: Tensor | None
) -> Tensor:
    """Return the log-probabilities of the targets, [C], and write r into ``residual_CV``, which may be ``z_CV``."""
    C, V = z_CV.shape
    exact, transform = exact_dtype(z_CV.dtype), OutputTransform(scale, soft_cap)
    # A slice in float32, of which there are two. CPU: 2 MiB, the second-level cache of two cores, took 13% less time
    # than 12 MiB. Elsewhere: few launches, and buffers that stay small beside the chunk.
    slice_bytes = 2 << 20 if z_CV.device.type == "cpu" else 64 << 20
    rows = max(1, min(C, slice_bytes // (V * exact.itemsize)))
    p_RV = z_CV.new_empty(rows, V, dtype=exact)
    in_place_CV = residual_CV if z_CV.dtype == exact else None
    logits_RV = p_RV.new_empty(rows if in_place_CV is None else 0, V)
    logp_C = z_CV.new_empty(C, dtype=exact)
    for first in range(0, C, rows):
        part = slice(first, min(first + rows, C))
        R = part.stop - first
        target_R1 = target_C[part].unsqueeze(1)
        logits_RV = logits_RV[:R] if in_place_CV is None else in_place_CV[part]
        transform.apply_(logits_RV.copy_(z_CV[part]))
        logp_C[part] = _logps_and_probabilities(logits_RV, target_R1, p_RV[:R]).squeeze(1)
        if residual_CV is not None:
            residual_CV[part].copy_(_residuals(logits_RV, target_R1, p_RV[:R], transform))
    return logp_C


def exact_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype for sums over the vocabulary: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _logps_and_probabilities(logits_RV: Tensor, target_R1: Tensor, p_RV: Tensor) -> Tensor:
    torch.softmax(logits_RV, -1, out=p_RV)
    # The largest probability is 1 / (sum of exp(logit - largest logit)): at least 1 / V, so its logarithm is good. Two
    # maxima cost a third of the exponentials that a log-softmax and its exponential would take beside the softmax's.
    return logits_RV.gather(1, target_R1) - logits_RV.amax(-1, keepdim=True) + p_RV.amax(-1, keepdim=True).log_()


def _residuals(logits_RV: Tensor, target_R1: Tensor, p_RV: Tensor, transform: OutputTransform) -> Tensor:
    """Overwrite p with r; the logits are overwritten too."""
    p_RV.scatter_(1, target_R1, p_RV.gather(1, target_R1) - 1)
    if transform.soft_cap is not None:
        p_RV.mul_(logits_RV.div_(transform.soft_cap).square_().neg_().add_(1))
    return p_RV


# ---- Operator


def _empty_logps(
    z_CV: Tensor, target_C: Tensor, scale: float, soft_cap: float | None, residual_CV: Tensor | None
) -> Tensor:
    return z_CV.new_empty(len(z_CV), dtype=torch.float32)


target_logps = operator(
    "target_logps(Tensor z, Tensor target, float scale, float? soft_cap, Tensor(a!)? residual) -> Tensor",
    target_logps_reference,
    _empty_logps,
)
