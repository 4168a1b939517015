"""From hidden states to log-probabilities of given tokens, through any output layer, without ever holding all logits.

Shape suffixes: T packed positions, E entries (a position and a token that it predicts; a branch point has several),
C entries of a chunk, D hidden, V vocabulary.
"""

from __future__ import annotations

import torch
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .linear_head import chunk_bounds, efficient_rows, linear_token_logps
from .output_transform import OutputTransform
from .target_softmax import target_logps

BUDGET_BYTES = 512 << 20
# Tensors as large as a chunk's logits while it is worked on: the layer's, LoRA's, their sum, and our residuals.
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
    """``log softmax(transform(head(hidden[position])))[target]`` of each entry.

    A plain linear head, frozen or trained, tied or not, has its gradient written out (``linear_head.py``). Any other
    module (LoRA, quantised weights, a wrapper) is called on a chunk of entries at a time: exact for whatever it does.
    It is asked through its ``forward``, so that a hook on it may be where this is called.

    An entry is a row of its own, also where several share a position: a branch point then costs its rows anew, of which
    a forest has fewer than sequences, and no position has to be counted, which would stop a GPU.

    Args:
        head: The output layer: hidden states [..., D] to logits [..., V].
        hidden_TD: Its input, shape [T, D].
        position_E: Where each entry is predicted, int64, shape [E].
        target_E: The token predicted, int64, shape [E].
        transform: What the model does to the head's output.
        budget_bytes: What logits may take at once. All but a frozen linear head keep what their backward pass needs of
            them for as many entries as fit, and compute the others' twice.

    Returns:
        Natural logarithms, shape [E], float32 (float64 from float64), differentiable once with respect to
        ``hidden_TD`` and the head's trainable parameters. No reduction.
    """
    head = _in_use(head)
    hidden_ED = hidden_TD.index_select(0, position_E)
    # A subclass computes something else, a parametrised layer is a subclass, and accelerate's hook moves weights.
    if type(head) is nn.Linear and not hasattr(head, "_hf_hook"):
        return linear_token_logps(
            hidden_ED, head.weight, head.bias, target_E, transform=transform, budget_bytes=budget_bytes
        )
    return _chunked_logps(head, hidden_ED, target_E, transform, budget_bytes)


def token_logps_reference(
    head: nn.Module,
    hidden_TD: Tensor,
    position_E: Tensor,
    target_E: Tensor,
    *,
    transform: OutputTransform = _NO_TRANSFORM,
    budget_bytes: int = BUDGET_BYTES,
) -> Tensor:
    """The same as ``token_logps``, by all logits of all positions and plain autograd; ``budget_bytes`` is not kept."""
    logp_TV = transform.apply(_at_least_float32(head(hidden_TD))).log_softmax(-1)
    return logp_TV[position_E, target_E]


def _in_use(head: nn.Module) -> nn.Module:
    """The module that computes, inside PEFT's wrapper for modules that are trained in full."""
    while isinstance(head, ModulesToSaveWrapper):
        trained = [name for name in head.active_adapters[:1] if name in head.modules_to_save]
        head = head.modules_to_save[trained[0]] if trained and not head.disable_adapters else head.original_module
    return head


def _chunked_logps(
    head: nn.Module, hidden_ED: Tensor, target_E: Tensor, transform: OutputTransform, budget_bytes: int
) -> Tensor:
    device = hidden_ED.device.type

    def logps(hidden_CD: Tensor, target_C: Tensor) -> Tensor:
        # Chunks that shared autocast's bf16 copy of a weight would sum its gradient in bf16.
        dtype, enabled = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        with torch.autocast(device, dtype, enabled, cache_enabled=False):
            return target_logps(head.forward(hidden_CD), target_C, transform)

    budget_rows = budget_bytes // (_width(head) * hidden_ED.element_size())
    rows = max(1, min(efficient_rows(device), budget_rows // _COPIES))
    again_before = len(hidden_ED) - (budget_rows - (_COPIES - 1) * rows)
    chunks = []
    for first, last in chunk_bounds(len(hidden_ED), rows):
        chunk = hidden_ED[first:last], target_E[first:last]
        chunks.append(checkpoint(logps, *chunk, use_reentrant=False) if first < again_before else logps(*chunk))
    return torch.cat(chunks)


def _width(head: nn.Module) -> int:
    """V, by what the layer says or by its largest parameter; both are there in whatever PEFT puts around a layer."""
    width = getattr(head, "out_features", None)
    if isinstance(width, int):
        return width
    return max((size for parameter in head.parameters() for size in parameter.shape), default=1)


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
