"""Log-probabilities of given tokens under a linear output layer, without ever holding all logits.

With the layer's weight W [V, D] and bias b, an entry of hidden state h, and g = d loss / d logp of that entry, the
gradients are products with r, the residual of ``target_softmax.py``:

    dh = -g * scale * (r W)
    dW = -sum over entries of r (g * scale * h)^T
    db = -sum over entries of g * scale * r

g enters as a factor alone. So the forward pass goes on while the logits are there, to r W [E, D], and the backward pass
scales it. A frozen layer costs two matrix products. A trained one keeps the r of its last chunk for dW and makes those
of the others again: three products where the budget holds all entries, four for those that it does not hold.

Shape suffixes: E entries, C entries of a chunk, D hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .output_transform import OutputTransform
from .target_softmax import exact_dtype, logps_leaving_residuals

# CPU: products of 576 x 49152 in bf16 reach their full rate at 256 rows (8% short of it at 128, 27% at 64), and twice
# as many rows are tensors that the C library maps anew each time (32 MB). Elsewhere, unmeasured: enough rows that a
# product is not bound by reading the weight.
_EFFICIENT_ROWS = {"cpu": 256}
_OTHER_EFFICIENT_ROWS = 1024


def linear_token_logps(
    hidden_ED: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    target_E: Tensor,
    *,
    transform: OutputTransform,
    budget_bytes: int,
) -> Tensor:
    """Log-probability of each entry's target under ``nn.Linear`` and what follows it.

    Matrix products run in the dtype of ``hidden_ED``; under autocast in autocast's, as the layer's own would.

    Args:
        hidden_ED: Input of the layer, shape [E, D].
        weight_VD: The layer's weight.
        bias_V: Its bias, or ``None``.
        target_E: int64, shape [E].
        transform: What the model does after the layer.
        budget_bytes: What the logits may take at once, in the products' dtype.

    Returns:
        Natural logarithms, shape [E], float32 (float64 from float64), differentiable once with respect to
        ``hidden_ED``, ``weight_VD`` and ``bias_V``. No reduction.
    """
    device = hidden_ED.device.type
    if torch.is_autocast_enabled(device) and hidden_ED.dtype != torch.float64:
        hidden_ED = hidden_ED.to(torch.get_autocast_dtype(device))
    rows = max(1, budget_bytes // (len(weight_VD) * hidden_ED.element_size()))
    learns = torch.is_grad_enabled()
    if not (learns and (weight_VD.requires_grad or (bias_V is not None and bias_V.requires_grad))):
        rows = min(rows, efficient_rows(device))
    return _LinearTokenLogps.apply(hidden_ED, weight_VD, bias_V, target_E, transform, rows, learns)


class _LinearTokenLogps(torch.autograd.Function):
    """The gradient of ``linear_token_logps``, as the top of this file derives it."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ED: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        target_E: Tensor,
        transform: OutputTransform,
        rows: int,
        learns: bool,
    ) -> Tensor:
        E = len(hidden_ED)
        wants_hidden, *wants_layer = (wanted and learns for wanted in ctx.needs_input_grad[:3])
        weight_in_dtype_VD = weight_VD.to(hidden_ED.dtype)
        logp_E = hidden_ED.new_empty(E, dtype=exact_dtype(hidden_ED.dtype))
        product_ED = torch.empty_like(hidden_ED) if wants_hidden else None
        buffer_CV = hidden_ED.new_empty(min(rows, E), len(weight_VD))
        bounds = chunk_bounds(E, rows)
        for first, last in bounds:
            z_CV = _outputs(hidden_ED[first:last], weight_in_dtype_VD, bias_V, out_CV=buffer_CV[: last - first])
            logp_E[first:last] = logps_leaving_residuals(z_CV, target_E[first:last], transform, residuals=learns)
            if product_ED is not None:
                torch.mm(z_CV, weight_in_dtype_VD, out=product_ED[first:last])
        ctx.transform, ctx.bounds = transform, bounds
        if any(wants_layer):  # the buffer now holds the residuals of the last chunk, which fills it
            ctx.save_for_backward(product_ED, hidden_ED, weight_VD, bias_V, target_E, buffer_CV)
        else:
            ctx.save_for_backward(product_ED)
        return logp_E

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logp_E: Tensor) -> tuple[Tensor | None, ...]:
        product_ED, *of_layer = ctx.saved_tensors
        factor_E1 = grad_logp_E.mul(-ctx.transform.scale).unsqueeze(1)
        grad_hidden_ED = None if product_ED is None else (product_ED * factor_E1).to(product_ED.dtype)
        grad_weight_VD, grad_bias_V = _layer_gradients(ctx, factor_E1, *of_layer) if of_layer else (None, None)
        return grad_hidden_ED, grad_weight_VD, grad_bias_V, None, None, None, None


def efficient_rows(device: str) -> int:
    """Entries in a chunk that nothing is gained by making larger, on a type of device."""
    return _EFFICIENT_ROWS.get(device, _OTHER_EFFICIENT_ROWS)


def chunk_bounds(entries: int, rows: int) -> list[tuple[int, int]]:
    """Chunks of ``rows`` entries in their order; what is left over comes first, so that the last one is full."""
    ends = range(entries % rows or rows, entries + 1, rows)
    return [(max(0, end - rows), end) for end in ends] if entries >= rows else [(0, entries)]


def _outputs(hidden_CD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, out_CV: Tensor) -> Tensor:
    """``hidden @ weight^T + bias`` into ``out_CV``, in its dtype."""
    if bias_V is None:
        return torch.mm(hidden_CD, weight_VD.t(), out=out_CV)
    return torch.addmm(bias_V.to(out_CV.dtype), hidden_CD, weight_VD.t(), out=out_CV)


def _layer_gradients(
    ctx: Any,
    factor_E1: Tensor,
    hidden_ED: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    target_E: Tensor,
    buffer_CV: Tensor,
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of weight and bias. Chunks are summed in float32 (float64), within a chunk as the product does.

    The last chunk comes first, and the memory of its residuals then takes those of the others in turn.
    """
    _, wants_weight, wants_bias = ctx.needs_input_grad[:3]
    dtype, last_chunk = hidden_ED.dtype, ctx.bounds[-1]
    weight_in_dtype_VD = weight_VD.to(dtype) if len(ctx.bounds) > 1 else weight_VD
    scaled_ED, factor_E1 = (hidden_ED * factor_E1).to(dtype), factor_E1.to(dtype)
    grad_weight_VD = grad_bias_V1 = None
    for first, last in reversed(ctx.bounds):
        residual_CV = buffer_CV[: last - first]
        if (first, last) != last_chunk:
            _outputs(hidden_ED[first:last], weight_in_dtype_VD, bias_V, out_CV=residual_CV)
            logps_leaving_residuals(residual_CV, target_E[first:last], ctx.transform, residuals=True)
        if wants_weight:
            grad_weight_VD = _add_product(grad_weight_VD, residual_CV.t(), scaled_ED[first:last])
        if wants_bias:
            grad_bias_V1 = _add_product(grad_bias_V1, residual_CV.t(), factor_E1[first:last])
    return (
        None if grad_weight_VD is None else grad_weight_VD.to(weight_VD.dtype),
        None if grad_bias_V1 is None or bias_V is None else grad_bias_V1.squeeze(1).to(bias_V.dtype),
    )


def _add_product(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    """``total + left @ right``, in place, float32 or better."""
    exact = exact_dtype(left.dtype)
    if total is None:
        return torch.mm(left, right).to(exact)
    return total.addmm_(left, right) if left.dtype == exact else total.add_(torch.mm(left, right))
