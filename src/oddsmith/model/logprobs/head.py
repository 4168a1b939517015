"""Compute log-probabilities of given tokens from hidden states, for any output layer, without holding all logits.

For an entry with hidden state h, head output z = W h + b and target y:

    logits = cap * tanh(scale * z / cap)       p = softmax(logits)       logp = log p_y
    d logp / dz = -scale * r                   r = (p - onehot(y)) * (1 - (logits / cap)^2)

p and logp are float32 (float64 from float64). The one-hot is subtracted in that dtype, before the residual r is rounded
to the dtype of z, so that the gradient of a confident token (p_y near 1) does not drown in rounding. On a GPU one
kernel puts r in the place of z (``kernels/head.py``).

With g = d loss / d logp, the gradients of a linear head are matrix products with r:

    dh = -g * scale * (r W)
    dW = -sum over entries of r (g * scale * h)^T
    db = -sum over entries of g * scale * r

Of a frozen layer of which PEFT trains some rows (trainable tokens), these take the place of W's in z and r W, and
dW is needed for them alone: the residuals of K tokens, [E, K], are saved for it.

g is only a factor. So the forward pass computes r W [E, D] while the logits exist, and the backward pass scales it. A
frozen layer costs two matrix products. A trained one saves the r of its last chunk for dW and computes those of the
other chunks again: three products where the budget holds all entries, four for those that it does not hold.

Shape suffixes: T packed positions, E entries (a position and a token that it predicts; a branch point has several), C
entries of a chunk, R rows of a slice (so few that their float32 copies stay in the cache), D hidden, V vocabulary, K
rows that PEFT trains.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from peft.utils import ModulesToSaveWrapper, TrainableTokensWrapper
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .backward_pass import exact_backward
from .kernels.head import exact_dtype, logps_and_residuals
from .memory_saving.token_rows import trained_tokens
from .output_transform import OutputTransform

BUDGET_BYTES = 512 << 20
# Tensors as large as a chunk's logits while it is computed: the layer's, LoRA's, their sum, and our residuals.
_COPIES = 4
_NO_TRANSFORM = OutputTransform()


def token_logps(
    head: nn.Module,
    hidden_TD: Tensor,
    position_E: Tensor,
    target_E: Tensor,
    *,
    transform: OutputTransform = _NO_TRANSFORM,
    budget_bytes: int = BUDGET_BYTES,
) -> Tensor:
    """Return ``log softmax(transform(head(hidden[position])))[target]`` of each entry.

    The gradient of a plain linear head, frozen or trained, tied or not, is written out. Any other module (LoRA,
    quantised weights, a wrapper) is called on one chunk of entries at a time: exact for whatever it computes. Its
    ``forward`` is called, not the module, so that a hook on the head may call this function.

    Every entry is a row, also where several share a position: a branch point costs its rows again, but a forest has
    fewer of these than sequences, and no positions have to be counted, which would make the host wait for a GPU.

    Args:
        head: The output layer: hidden states [..., D] to logits [..., V].
        hidden_TD: Its input, shape [T, D].
        position_E: Where each entry is predicted, ascending, int64, shape [E].
        target_E: The token predicted, int64, shape [E].
        transform: What the model does to the head's output.
        budget_bytes: How much memory logits may take at once. All but a frozen linear head save what their backward
            pass needs for as many entries as fit, and compute the rest twice.

    Returns:
        Natural logarithms, shape [E], float32 (float64 from float64), differentiable once with respect to
        ``hidden_TD`` and the head's trainable parameters. No reduction.
    """
    head = _active_module(head)
    hidden_ED = _rows_of_entries(hidden_TD, position_E)
    if (trained := _trained_rows(head)) is not None:
        return _rows_logps(*trained, hidden_ED, target_E, transform, budget_bytes)
    # A subclass computes something else, a parametrised layer is a subclass, and accelerate's hook moves weights.
    if type(head) is nn.Linear and not hasattr(head, "_hf_hook"):
        return _linear_logps(head, hidden_ED, target_E, transform, budget_bytes)
    return _chunked_logps(head, hidden_ED, target_E, transform, budget_bytes)


def kept_bytes(head: nn.Module, entries: int, *, budget_bytes: int = BUDGET_BYTES) -> int:
    """Return how many bytes as wide as the vocabulary ``token_logps`` keeps for its backward pass, at most.

    They grow with the entries up to the budget. A frozen head keeps none, and holds at most the budget while it
    computes. Call it in the precision of training (autocast).
    """
    head = _active_module(head)
    if _trained_rows(head) is not None or not any(parameter.requires_grad for parameter in head.parameters()):
        return 0
    weight = next(head.parameters())
    device = weight.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    width = _width(head)
    return min(entries, _rows_in(budget_bytes, width, dtype)) * _padded(width, device) * dtype.itemsize


def token_logps_reference(
    head: nn.Module,
    hidden_TD: Tensor,
    position_E: Tensor,
    target_E: Tensor,
    *,
    transform: OutputTransform = _NO_TRANSFORM,
    budget_bytes: int = BUDGET_BYTES,
) -> Tensor:
    """Compute the same as ``token_logps`` from all logits of all positions by autograd; ``budget_bytes`` is ignored."""
    logits_TV = head(hidden_TD)
    logp_TV = transform.apply(logits_TV.to(exact_dtype(logits_TV.dtype))).log_softmax(-1)
    return logp_TV[position_E, target_E]


def _active_module(head: nn.Module) -> nn.Module:
    """Return the module that computes, inside PEFT's wrapper for modules that are trained in full."""
    while isinstance(head, ModulesToSaveWrapper):
        trained = [name for name in head.active_adapters[:1] if name in head.modules_to_save]
        head = head.modules_to_save[trained[0]] if trained and not head.disable_adapters else head.original_module
    return head


def _efficient_rows(device: str, channels: int) -> int:
    """Return how many entries a chunk needs for full speed.

    CPU: products of 576 x 49152 in bf16 reach their full rate at 256 rows (8% short of it at 128, 27% at 64), and twice
    as many rows are tensors that the C library maps anew each time (32 MB). A GPU, by calculation: with 1,024 rows a
    product is not bound by reading the weight, and r W, of C x D numbers, makes work for all multiprocessors from 128
    tiles of 128 x 256 on.
    """
    return 256 if device == "cpu" else max(1024, (4 << 20) // channels)


def _frozen_rows(hidden_ED: Tensor, vocabulary: int, budget_bytes: int) -> int:
    """Return the rows of a chunk of which nothing is kept; on a GPU chunks are of equal length."""
    E, channels = hidden_ED.shape
    device = hidden_ED.device.type
    rows = min(_rows_in(budget_bytes, vocabulary, hidden_ED.dtype), _efficient_rows(device, channels))
    return rows if device == "cpu" or rows >= E else -(-E // -(-E // rows))


def _rows_in(budget_bytes: int, vocabulary: int, dtype: torch.dtype) -> int:
    return max(1, budget_bytes // (vocabulary * dtype.itemsize))


def _rows_of_entries(hidden_TD: Tensor, position_E: Tensor) -> Tensor:
    on_gpu = hidden_TD.device.type == "cuda"
    return _EntryRows.apply(hidden_TD, position_E) if on_gpu else hidden_TD.index_select(0, position_E)


class _EntryRows(torch.autograd.Function):
    """The hidden states of the entries. The gradient of a position is the sum over its entries, which lie together.

    PyTorch's own gradient adds with atomics on a GPU: with three entries or more at a position, bits that change from
    run to run. A bag of an embedding bag is summed by one thread, in float32.
    """

    @staticmethod
    def forward(ctx: Any, hidden_TD: Tensor, position_E: Tensor) -> Tensor:
        ctx.positions = len(hidden_TD)
        ctx.save_for_backward(position_E)
        return hidden_TD.index_select(0, position_E)

    @staticmethod
    @exact_backward
    def backward(ctx: Any, grad_ED: Tensor) -> tuple[Tensor, None]:
        (position_E,) = ctx.saved_tensors
        position_T = torch.arange(ctx.positions, device=position_E.device)
        first_entry_T = torch.searchsorted(position_E, position_T)
        entry_E = torch.arange(len(position_E), device=position_E.device)
        return F.embedding_bag(entry_E, grad_ED, first_entry_T, mode="sum"), None


def _chunk_bounds(entries: int, rows: int) -> list[tuple[int, int]]:
    """Cut entries into chunks of ``rows``, in order; the remainder comes first, so that the last chunk is full."""
    ends = range(entries % rows or rows, entries + 1, rows)
    return [(max(0, end - rows), end) for end in ends] if entries >= rows else [(0, entries)]


# ---- A linear head


def _linear_logps(
    head: nn.Linear, hidden_ED: Tensor, target_E: Tensor, transform: OutputTransform, budget_bytes: int
) -> Tensor:
    """Compute in the dtype of ``hidden_ED``; under autocast in autocast's, as the layer itself would."""
    weight_VD, bias_V = head.weight, head.bias
    device = hidden_ED.device.type
    if torch.is_autocast_enabled(device) and hidden_ED.dtype != torch.float64:
        hidden_ED = hidden_ED.to(torch.get_autocast_dtype(device))
    grad_enabled = torch.is_grad_enabled()
    if grad_enabled and _is_trained(head):
        rows = _rows_in(budget_bytes, len(weight_VD), hidden_ED.dtype)
    else:
        rows = _frozen_rows(hidden_ED, len(weight_VD), budget_bytes)
    return _LinearLogps.apply(hidden_ED, weight_VD, bias_V, target_E, transform, rows, grad_enabled)


def _is_trained(head: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in head.parameters())


class _LinearLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ED: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        target_E: Tensor,
        transform: OutputTransform,
        rows: int,
        grad_enabled: bool,
    ) -> Tensor:
        E = len(hidden_ED)
        wants_hidden, *wants_layer = (wanted and grad_enabled for wanted in ctx.needs_input_grad[:3])
        weight_in_dtype_VD = weight_VD.to(hidden_ED.dtype)
        logp_E = hidden_ED.new_empty(E, dtype=exact_dtype(hidden_ED.dtype))
        product_ED = torch.empty_like(hidden_ED) if wants_hidden else None
        buffer_CV = _logits_buffer(hidden_ED, min(rows, E), len(weight_VD))
        bounds = _chunk_bounds(E, rows)
        for first, last in bounds:
            z_CV = _outputs(hidden_ED[first:last], weight_in_dtype_VD, bias_V, out_CV=buffer_CV[: last - first])
            logp_E[first:last] = _replaced(z_CV, target_E[first:last], transform, residuals=grad_enabled)
            if product_ED is not None:
                torch.mm(z_CV, weight_in_dtype_VD, out=product_ED[first:last])
        ctx.transform, ctx.bounds = transform, bounds
        if any(wants_layer):  # the buffer now holds the residuals of the last chunk, which fills it
            ctx.save_for_backward(product_ED, hidden_ED, weight_VD, bias_V, target_E, buffer_CV)
        else:
            ctx.save_for_backward(product_ED)
        return logp_E

    @staticmethod
    @exact_backward
    def backward(ctx: Any, grad_logp_E: Tensor) -> tuple[Tensor | None, ...]:
        product_ED, *of_layer = ctx.saved_tensors
        factor_E1 = grad_logp_E.mul(-ctx.transform.scale).unsqueeze(1)
        grad_hidden_ED = None if product_ED is None else (product_ED * factor_E1).to(product_ED.dtype)
        grad_weight_VD, grad_bias_V = _layer_gradients(ctx, factor_E1, *of_layer) if of_layer else (None, None)
        return grad_hidden_ED, grad_weight_VD, grad_bias_V, None, None, None, None


def _logits_buffer(hidden_ED: Tensor, rows: int, vocabulary: int) -> Tensor:
    """Return memory for logits, [rows, V]. On a GPU rows begin at multiples of 128 bytes or more, for any vocabulary.

    Products and kernel then read and write 16 bytes at a time; with 50,257 tokens in a row (GPT-2) they could not.
    """
    return hidden_ED.new_empty(rows, _padded(vocabulary, hidden_ED.device.type))[:, :vocabulary]


def _padded(vocabulary: int, device: str) -> int:
    """Return how far rows of logits lie apart."""
    return -(-vocabulary // 64) * 64 if device == "cuda" else vocabulary


def _replaced(z_CV: Tensor, target_C: Tensor, transform: OutputTransform, *, residuals: bool) -> Tensor:
    """Return the log-probabilities of the targets, [C]; r takes the place of z if ``residuals`` are wanted."""
    return logps_and_residuals(z_CV, target_C, transform, residuals=residuals, overwrite=True)[0]


def _outputs(hidden_CD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, out_CV: Tensor) -> Tensor:
    """Write ``hidden @ weight^T + bias`` into ``out_CV``, in its dtype."""
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
    """Return the gradients of weight and bias, summed over chunks in float32 (float64).

    The last chunk comes first; the memory of its residuals is then reused for the residuals of the other chunks.
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
            _replaced(residual_CV, target_E[first:last], ctx.transform, residuals=True)
        if wants_weight:
            grad_weight_VD = _add_product(grad_weight_VD, residual_CV.t(), scaled_ED[first:last])
        if wants_bias:
            grad_bias_V1 = _add_product(grad_bias_V1, residual_CV.t(), factor_E1[first:last])
    return (
        None if grad_weight_VD is None else grad_weight_VD.to(weight_VD.dtype),
        None if grad_bias_V1 is None or bias_V is None else grad_bias_V1.squeeze(1).to(bias_V.dtype),
    )


def _add_product(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    """Return ``total + left @ right``, added in place, in float32 or better.

    On an NVIDIA GPU products of 16-bit numbers are added in float32 without a rounding before, and without a pass over
    memory of their own.
    """
    exact = exact_dtype(left.dtype)
    if left.device.type == "cuda" and left.dtype != exact and torch.version.hip is None:
        if total is None:
            return torch.mm(left, right, out_dtype=exact)
        return torch.addmm(total, left, right, out_dtype=exact, out=total)
    if total is None:
        return torch.mm(left, right).to(exact)
    return total.addmm_(left, right) if left.dtype == exact else total.add_(torch.mm(left, right))


# ---- A frozen linear head with rows that are trained


def _trained_rows(head: nn.Module) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return the weight of a frozen head, and token ids and weights of the rows that PEFT trains, if it does no more.

    PEFT's own layer copies the weight in each pass, and computes the gradient of all of it.
    """
    if not isinstance(head, TrainableTokensWrapper) or hasattr(head, "_hf_hook"):
        return None
    adapter: Any = head.token_adapter
    layer: Any = adapter.base_layer
    active = adapter.active_adapters
    kind: type = type(layer)
    if kind is not nn.Linear or layer.bias is not None or hasattr(layer, "_hf_hook"):
        return None
    if layer.weight.requires_grad or adapter.merged or adapter.disable_adapters:
        return None
    if len(active) != 1 or active[0] not in adapter.trainable_tokens_delta:
        return None
    token_K = trained_tokens(adapter, active[0], layer.weight.device)
    return layer.weight, token_K, adapter.trainable_tokens_delta[active[0]]


def _rows_logps(
    weight_VD: Tensor,
    token_K: Tensor,
    row_KD: Tensor,
    hidden_ED: Tensor,
    target_E: Tensor,
    transform: OutputTransform,
    budget_bytes: int,
) -> Tensor:
    device = hidden_ED.device.type
    if torch.is_autocast_enabled(device) and hidden_ED.dtype != torch.float64:
        hidden_ED = hidden_ED.to(torch.get_autocast_dtype(device))
    rows = _frozen_rows(hidden_ED, len(weight_VD), budget_bytes)
    return _RowsLogps.apply(hidden_ED, row_KD, weight_VD, token_K, target_E, transform, rows, torch.is_grad_enabled())


class _RowsLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ED: Tensor,
        row_KD: Tensor,
        weight_VD: Tensor,
        token_K: Tensor,
        target_E: Tensor,
        transform: OutputTransform,
        rows: int,
        grad_enabled: bool,
    ) -> Tensor:
        E, dtype = len(hidden_ED), hidden_ED.dtype
        weight_VD, row_in_dtype_KD = weight_VD.to(dtype), row_KD.to(dtype)
        logp_E = hidden_ED.new_empty(E, dtype=exact_dtype(dtype))
        product_ED, residual_EK = torch.empty_like(hidden_ED), hidden_ED.new_empty(E, len(token_K))
        buffer_CV = _logits_buffer(hidden_ED, min(rows, E), len(weight_VD))
        for first, last in _chunk_bounds(E, rows):
            z_CV = _outputs(hidden_ED[first:last], weight_VD, None, out_CV=buffer_CV[: last - first])
            z_CV[:, token_K] = hidden_ED[first:last] @ row_in_dtype_KD.t()
            logp_E[first:last] = _replaced(z_CV, target_E[first:last], transform, residuals=grad_enabled)
            if grad_enabled:
                residual_EK[first:last] = z_CV[:, token_K]
                z_CV[:, token_K] = 0
                torch.mm(z_CV, weight_VD, out=product_ED[first:last])
                product_ED[first:last] += residual_EK[first:last] @ row_in_dtype_KD
        ctx.transform, ctx.row_dtype = transform, row_KD.dtype
        ctx.save_for_backward(hidden_ED, product_ED, residual_EK)
        return logp_E

    @staticmethod
    @exact_backward
    def backward(ctx: Any, grad_logp_E: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ED, product_ED, residual_EK = ctx.saved_tensors
        factor_E1 = grad_logp_E.mul(-ctx.transform.scale).unsqueeze(1)
        wants_hidden, wants_rows = ctx.needs_input_grad[:2]
        grad_hidden_ED = (product_ED * factor_E1).to(product_ED.dtype) if wants_hidden else None
        exact = exact_dtype(hidden_ED.dtype)  # few products, so that they may be exact
        grad_row_KD = (residual_EK * factor_E1).to(exact).t() @ hidden_ED.to(exact) if wants_rows else None
        return grad_hidden_ED, None if grad_row_KD is None else grad_row_KD.to(ctx.row_dtype), *[None] * 6


# ---- Any other head


def _chunked_logps(
    head: nn.Module, hidden_ED: Tensor, target_E: Tensor, transform: OutputTransform, budget_bytes: int
) -> Tensor:
    device = hidden_ED.device.type

    def logps(hidden_CD: Tensor, target_C: Tensor) -> Tensor:
        # Chunks that shared autocast's bf16 copy of a weight would sum its gradient in bf16.
        dtype, enabled = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        with torch.autocast(device, dtype, enabled, cache_enabled=False):
            return _TargetLogps.apply(head.forward(hidden_CD), target_C, transform, torch.is_grad_enabled())

    budget_rows = budget_bytes // (_width(head) * hidden_ED.element_size())
    rows = max(1, min(_efficient_rows(device, hidden_ED.shape[1]), budget_rows // _COPIES))
    first_saved = len(hidden_ED) - (budget_rows - (_COPIES - 1) * rows)
    chunks = []
    for first, last in _chunk_bounds(len(hidden_ED), rows):
        chunk = hidden_ED[first:last], target_E[first:last]
        chunks.append(checkpoint(logps, *chunk, use_reentrant=False) if first < first_saved else logps(*chunk))
    return torch.cat(chunks)


def _width(head: nn.Module) -> int:
    """Return V, from the layer's attribute or its largest parameter; whatever PEFT puts around a layer has both."""
    width = getattr(head, "out_features", None)
    if isinstance(width, int):
        return width
    return max((size for parameter in head.parameters() for size in parameter.shape), default=1)


class _TargetLogps(torch.autograd.Function):
    """Log-probabilities of the targets from any head's output z. It saves r alone, and does not change z."""

    @staticmethod
    def forward(ctx: Any, z_CV: Tensor, target_C: Tensor, transform: OutputTransform, grad_enabled: bool) -> Tensor:
        needs_grad = grad_enabled and ctx.needs_input_grad[0]
        logp_C, residual_CV = logps_and_residuals(z_CV, target_C, transform, residuals=needs_grad, overwrite=False)
        if needs_grad:
            ctx.save_for_backward(residual_CV)
            ctx.scale = transform.scale
        return logp_C

    @staticmethod
    @exact_backward
    def backward(ctx: Any, grad_logp_C: Tensor) -> tuple[Tensor, None, None, None]:
        (residual_CV,) = ctx.saved_tensors
        factor_C1 = grad_logp_C.mul(-ctx.scale).unsqueeze(1).to(residual_CV.dtype)
        return residual_CV * factor_C1, None, None, None
