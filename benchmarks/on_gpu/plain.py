"""TRL 1.16's ``ORPOTrainer`` in plain PyTorch, for machines where TRL is not installed.

Chosen and rejected are padded to one length and go through the model in one batch; all logits are computed, in float32
as accelerate returns them; the NLL is the mean over the chosen sequences, a response's log-probability the mean over
its tokens. Left out, because they do not change what is learned: TRL's metrics, and its fused kernel for the
log-probabilities of the responses.

Shape suffixes: B pairs, S = 2B sequences (chosen first), T tokens of the longest, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Trainer

from oddsmith.batching.collate import IGNORED
from oddsmith.loss import orpo_loss


class PlainTrainer(Trainer):
    """transformers' ``Trainer`` with TRL's loss.

    Args:
        beta: Weight of the odds-ratio term.
        **arguments: Of ``Trainer``; its collator makes TRL's columns.
    """

    def __init__(self, beta: float, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.beta = beta
        self.model_accepts_loss_kwargs = False  # so that the mean over accumulation steps is taken, as in TRL

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the mean NLL of the chosen sequences, plus beta times the mean of the odds-ratio losses."""
        ids_ST, mask_ST, labels_ST = (
            _stacked(inputs, kind, fill)
            for kind, fill in (("input_ids", 0), ("attention_mask", 0), ("labels", IGNORED))
        )
        logits_STV = model(ids_ST, attention_mask=mask_ST, use_cache=False).logits
        B = len(ids_ST) // 2
        targets_BT = ids_ST[:B].masked_fill(mask_ST[:B] == 0, IGNORED)[:, 1:]
        nll = F.cross_entropy(logits_STV[:B, :-1].flatten(0, 1), targets_BT.flatten(), ignore_index=IGNORED)
        logp_S = _mean_logps(logits_STV[:, :-1], labels_ST[:, 1:])
        odds = orpo_loss(nll, logp_S[:B], logp_S[B:], beta=self.beta, num_nll_tokens=1, num_pairs=B)
        return (odds.loss, {}) if return_outputs else odds.loss


def _stacked(inputs: dict[str, Tensor], kind: str, fill: int) -> Tensor:
    sides = [inputs[f"{side}_{kind}"] for side in ("chosen", "rejected")]
    width = max(side.shape[1] for side in sides)
    return torch.cat([F.pad(side, (0, width - side.shape[1]), value=fill) for side in sides])


def _mean_logps(logits_STV: Tensor, labels_ST: Tensor) -> Tensor:
    """Return the mean log-probability of each sequence's labels, without a copy of all logits."""
    counted_ST = labels_ST != IGNORED
    chosen_ST = logits_STV.gather(-1, labels_ST.masked_fill(~counted_ST, 0).unsqueeze(-1)).squeeze(-1)
    logp_ST = chosen_ST - torch.stack([logits_TV.logsumexp(-1) for logits_TV in logits_STV])
    return (logp_ST * counted_ST).sum(-1) / counted_ST.sum(-1)
