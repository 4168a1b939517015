"""Compute log-probabilities of preference pairs on a prefix forest, without logits: the fast ``padded.pair_logps``.

The model runs once over the packed row. Hooks catch the input of its output layer and turn it into log-probabilities
(``head.py``) before any logits are computed. Shape suffixes as in ``batching/forest.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ...batching.collate import IGNORED
from .current_layout import resumed_in_backward, set_layout
from .head import BUDGET_BYTES, token_logps
from .output_transform import OutputTransform
from .padded import PairLogps, unwrap
from .pair_tokens import PairTokens, Tokens


def forest_logps(
    model: nn.Module, batch: Mapping[str, Any], *, transform: OutputTransform, head_bytes: int = BUDGET_BYTES
) -> PairLogps:
    """Run one forward pass over a packed row; enter ``forest_attention_in(model)`` around it and its backward pass.

    ``model`` is a causal language model, possibly wrapped (DDP, PEFT), ``batch`` the result of ``forest_batch`` on its
    device, and ``transform`` what follows the output layer, which may take ``head_bytes`` (``head.py``). The result is
    that of ``pair_logps`` for the same pairs.
    """
    layout = batch["forest"].to(batch["input_ids"].device)

    def logp_of(head: nn.Module, hidden_1TD: Tensor) -> Tensor:
        hidden_TD = resumed_in_backward(hidden_1TD, layout).squeeze(0)
        entries = batch["position_E"], batch["target_E"]
        return token_logps(head, hidden_TD, *entries, transform=transform, budget_bytes=head_bytes)

    set_layout(layout)
    with head_replaced(model, logp_of):
        outputs = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False)
    logp_E = outputs.logits
    logp_SL = _of_lists(logp_E, batch, "response")
    logp_S = logp_SL.sum(-1) / batch["response_tokens_S"]
    B = len(batch["nll_tokens_B"])
    return PairLogps(
        nll_sum_B=-_of_lists(logp_E, batch, "nll").sum(-1),
        nll_tokens_B=batch["nll_tokens_B"],
        logp_chosen_B=logp_S[:B],
        logp_rejected_B=logp_S[B:],
        chosen_tokens_B=batch["response_tokens_S"][:B],
        tokens_B=batch["tokens_B"],
        response_logp_SL=logp_SL.detach(),
        aux_loss=None,
        token_logps=logp_E,
    )


def forest_tokens(batch: Mapping[str, Any], logp_E: Tensor | None) -> PairTokens:
    """Return the tokens of the pairs of a batch, with the ``token_logps`` of :func:`forest_logps`; ``None``: with 0."""
    ids_E = F.pad(batch["target_E"], (0, 1), value=IGNORED)  # the lists of entries are padded with E
    if logp_E is None:
        logp_E = torch.zeros(len(batch["target_E"]), device=ids_E.device)
    B = len(batch["nll_tokens_B"])
    ids_SL, logp_SL = ids_E[batch["response_entry_SL"]], _of_lists(logp_E, batch, "response")
    return PairTokens(
        Tokens(ids_SL[:B], logp_SL[:B]),
        Tokens(ids_SL[B:], logp_SL[B:]),
        Tokens(ids_E[batch["nll_entry_BL"]], _of_lists(logp_E, batch, "nll")),
    )


def _of_lists(values_E: Tensor, batch: Mapping[str, Any], name: str) -> Tensor:
    """Return the values of the entries of each ``"response"``, [S, L], or of the ``"nll"`` of each pair, [B, L]."""
    entry_SL = batch["response_entry_SL" if name == "response" else "nll_entry_BL"]
    return _Listed.apply(values_E, entry_SL, batch[f"{name}_place_ME"])


class _Listed(torch.autograd.Function):
    """``values_E[entry_SL]``, 0 where the lists are padded with E.

    The gradient of an entry is the sum over the M places where it stands. Autograd's own would sort all places, and add
    up the thousands that are padded one by one; an addition by atomics would have another order each time.
    """

    @staticmethod
    def forward(ctx: Any, values_E: Tensor, entry_SL: Tensor, place_ME: Tensor) -> Tensor:
        ctx.save_for_backward(place_ME)
        return F.pad(values_E, (0, 1))[entry_SL]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_SL: Tensor) -> tuple[Tensor, None, None]:
        (place_ME,) = ctx.saved_tensors
        return F.pad(grad_SL.reshape(-1), (0, 1))[place_ME].sum(0), None, None


@contextmanager
def head_replaced(model: nn.Module, compute: Callable[[nn.Module, Tensor], Tensor]) -> Iterator[None]:
    """Let the model's ``logits`` be ``compute(head, hidden states)`` while inside.

    Hooks do this under any wrapper, with the head's parameters in place and the result among the outputs, where DDP
    looks for the parameters in use. A hook on the output layer computes and passes an empty input on to the layer. For
    the hooks of others the result is then the layer's output, before whose backward pass they gather sharded parameters
    again. A hook on the model puts it where the logits would be.
    """
    inner = unwrap(model)
    results: list[Tensor] = []
    empty: list[Tensor] = []  # input and output of the layer in the call whose result is kept

    def compute_logps(head: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if results:  # ``compute`` called the head
            return None
        results.append(args[0])
        results[0] = compute(head, args[0])
        empty.append(args[0][:, :0])
        return (empty[0], *args[1:])

    def show_result(head: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if not (empty and args[0] is empty[0]):
            return output
        empty.append(output)
        return results[0]

    def take_result(head: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if not (empty and args[0] is empty[0]):
            return output
        results[0] = output
        return empty[1]

    def set_logits(module: nn.Module, args: tuple[Any, ...], outputs: Any) -> Any:
        outputs.logits = results[0]
        return outputs

    head = inner.get_output_embeddings()
    handles = [
        head.register_forward_pre_hook(compute_logps),
        head.register_forward_hook(show_result, prepend=True),
        head.register_forward_hook(take_result),
        inner.register_forward_hook(set_logits),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
