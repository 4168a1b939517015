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

from ...batching.collate import IGNORED
from .current_layout import resumed_in_backward, set_layout
from .head import token_logps
from .output_transform import OutputTransform
from .padded import PairLogps, unwrap
from .pair_tokens import PairTokens, Tokens


def forest_logps(model: nn.Module, batch: Mapping[str, Any], *, transform: OutputTransform) -> PairLogps:
    """Run one forward pass over a packed row; enter ``forest_attention_in(model)`` around it and its backward pass.

    ``model`` is a causal language model, possibly wrapped (DDP, PEFT), ``batch`` the result of ``forest_batch`` on its
    device, and ``transform`` what follows the output layer. The result is that of ``pair_logps`` for the same pairs.
    """
    layout = batch["forest"].to(batch["input_ids"].device)

    def logp_of(head: nn.Module, hidden_1TD: Tensor) -> Tensor:
        hidden_TD = resumed_in_backward(hidden_1TD, layout)[0]
        return token_logps(head, hidden_TD, batch["position_E"], batch["target_E"], transform=transform)

    set_layout(layout)
    with head_replaced(model, logp_of):
        outputs = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False)
    logp_E = F.pad(outputs.logits, (0, 1))  # the lists of entries are padded with E
    logp_SL = logp_E[batch["response_entry_SL"]]
    logp_S = logp_SL.sum(-1) / batch["response_tokens_S"]
    B = len(batch["nll_tokens_B"])
    return PairLogps(
        nll_sum_B=-logp_E[batch["nll_entry_BL"]].sum(-1),
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
        logp_E = torch.zeros(len(ids_E), device=ids_E.device)
    B = len(batch["nll_tokens_B"])

    def tokens(entry_BL: Tensor) -> Tokens:
        return Tokens(ids_E[entry_BL], logp_E[entry_BL])

    entry_SL = batch["response_entry_SL"]
    return PairTokens(tokens(entry_SL[:B]), tokens(entry_SL[B:]), tokens(batch["nll_entry_BL"]))


@contextmanager
def head_replaced(model: nn.Module, compute: Callable[[nn.Module, Tensor], Tensor]) -> Iterator[None]:
    """Let the model's ``logits`` be ``compute(head, hidden states)`` while inside.

    Two hooks do this under any wrapper, with the head's parameters in place and the result among the outputs, where DDP
    looks for the parameters in use. A hook on the output layer computes and passes an empty input on to the layer; a
    hook on the model puts the result where the logits would be.
    """
    inner = unwrap(model)
    results: list[Tensor] = []

    def compute_logps(head: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if results:  # ``compute`` called the head
            return None
        results.append(args[0])
        results[0] = compute(head, args[0])
        return (args[0][:, :0], *args[1:])

    def set_logits(module: nn.Module, args: tuple[Any, ...], outputs: Any) -> Any:
        outputs.logits = results[0]
        return outputs

    head = inner.get_output_embeddings()
    handles = [head.register_forward_pre_hook(compute_logps), inner.register_forward_hook(set_logits)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
