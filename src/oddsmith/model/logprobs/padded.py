"""Compute log-probabilities of preference pairs on plain padded batches: the reference path.

It takes any model that transformers can load: one forward pass over chosen and rejected sequences stacked on top of
each other, with logits only where a target is predicted.

Shape suffixes: B pairs, S = 2B sequences (chosen first), T positions, L tokens of a response, N targets of all
sequences, D hidden units, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...batching.collate import IGNORED, sequence_targets
from .pair_tokens import PairLosses, PairTokens, Tokens

# What kind of token all are, where a model that reads images as well would take text for something else: by its model
# type the argument, and its value for text that sees only what is before it.
_KIND_OF_TEXT = {"molmo2": ("mm_token_type_ids", 0), "paligemma": ("token_type_ids", 1)}


class PairLogps(NamedTuple):
    """Log-probabilities and counts of a micro-batch for loss and metrics; differentiable, float32 or better."""

    nll_sum_B: Tensor  # of -log p over the NLL targets of the chosen sequence
    nll_tokens_B: Tensor  # how many NLL targets
    logp_chosen_B: Tensor  # mean log-probability of the response's tokens
    logp_rejected_B: Tensor
    chosen_tokens_B: Tensor  # of the chosen response
    tokens_B: Tensor  # of both sequences, prompts included
    response_logp_SL: Tensor  # per token of each response, chosen responses first, detached; 0 behind the end
    aux_loss: Tensor | None  # router loss of a mixture-of-experts model (unscaled scalar)
    token_logps: Tensor | None = None  # of all targets, in the layout of the path that made them (its ``tokens``)
    own: PairLosses | None = None  # losses of one's own, if there are any


class _Stacked(NamedTuple):
    """Chosen and rejected sequences of a micro-batch, stacked; ``target_ST`` is what position t predicts."""

    model_inputs: dict[str, Tensor]
    target_ST: Tensor
    response_ST: Tensor
    nll_ST: Tensor
    tokens_S: Tensor


def pair_logps(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    *,
    pad_token_id: int,
    nll_on: str = "sequence",
    is_encoder_decoder: bool = False,
    router_loss: bool = False,
) -> PairLogps:
    """Run one forward pass over the pairs of a micro-batch.

        logp(y|x) = mean over the tokens of y of log p(y_t | x, y_<t)

    Args:
        model: A causal or encoder-decoder language model, possibly wrapped (DDP, PEFT).
        batch: What ``PairCollator`` makes, int64 [B, T].
        pad_token_id: Pads the shorter side where the two are stacked; it does not affect the result.
        nll_on: NLL targets: the chosen ``"sequence"`` (all its tokens but the first) or its ``"response"``.
        is_encoder_decoder: The prompt is the encoder's input, the response the decoder's target.
        router_loss: Ask a mixture-of-experts model for its load-balancing loss.

    Returns:
        Sums and means per pair. A sequence's first token has no prediction and is never a target.
    """
    start_token = unwrap(model).config.decoder_start_token_id if is_encoder_decoder else None
    stacked = _stack(batch, pad_token_id, nll_on, is_encoder_decoder, start_token)
    is_target_ST = stacked.response_ST | stacked.nll_ST
    extra: dict[str, Any] = {"output_router_logits": True} if router_loss else {}
    if kind := _KIND_OF_TEXT.get(unwrap(model).config.model_type):
        extra[kind[0]] = torch.full_like(stacked.target_ST, kind[1])
    place_N = is_target_ST.flatten().nonzero().squeeze(1)  # the one time that the host waits for a GPU here
    with head_only_at(model, place_N, is_target_ST.shape):
        outputs = model(**stacked.model_inputs, use_cache=False, **extra)
    logits_NV = outputs.logits
    if logits_NV.dim() == 3:  # the output layer was not found: logits of all positions
        logits_NV = _select(place_N, is_target_ST.shape, logits_NV)
    if logits_NV.dtype != torch.float64:  # a confident bf16 log-softmax would round the mean to exactly 0
        logits_NV = logits_NV.float()
    logp_N = -F.cross_entropy(logits_NV, stacked.target_ST.flatten()[place_N], reduction="none")
    logp_ST = logp_N.new_zeros(is_target_ST.numel()).index_copy(0, place_N, logp_N).view(is_target_ST.shape)
    B = is_target_ST.shape[0] // 2
    response_tokens_S = stacked.response_ST.sum(-1)
    logp_S = (logp_ST * stacked.response_ST).sum(-1) / response_tokens_S
    return PairLogps(
        nll_sum_B=-(logp_ST * stacked.nll_ST).sum(-1)[:B],
        nll_tokens_B=stacked.nll_ST.sum(-1)[:B],
        logp_chosen_B=logp_S[:B],
        logp_rejected_B=logp_S[B:],
        chosen_tokens_B=response_tokens_S[:B],
        tokens_B=stacked.tokens_S[:B] + stacked.tokens_S[B:],
        response_logp_SL=_left_aligned(logp_ST.detach() * stacked.response_ST, stacked.response_ST),
        aux_loss=outputs.aux_loss if router_loss else None,
        token_logps=logp_ST,
    )


def padded_tokens(
    batch: Mapping[str, Tensor], logp_ST: Tensor | None, *, nll_on: str, is_encoder_decoder: bool
) -> PairTokens:
    """Return the tokens of the pairs of a batch, with the ``token_logps`` of :func:`pair_logps`; ``None``: with 0."""
    stacked = _stack(batch, 0, nll_on, is_encoder_decoder, 0)
    B = len(stacked.target_ST) // 2
    if logp_ST is None:
        logp_ST = torch.zeros(stacked.target_ST.shape, device=stacked.target_ST.device)

    def tokens(is_target_BT: Tensor, rows: slice) -> Tokens:
        ids_BT, logp_BT = stacked.target_ST[rows].where(is_target_BT, IGNORED), logp_ST[rows].where(is_target_BT, 0.0)
        return Tokens(_left_aligned(ids_BT, is_target_BT), _left_aligned(logp_BT, is_target_BT))

    chosen, rejected = slice(0, B), slice(B, 2 * B)
    return PairTokens(
        tokens(stacked.response_ST[chosen], chosen),
        tokens(stacked.response_ST[rejected], rejected),
        tokens(stacked.nll_ST[chosen], chosen),
    )


def _left_aligned(values_ST: Tensor, response_ST: Tensor) -> Tensor:
    """Move the values of each response to the first columns, in their order; 0 elsewhere, as outside of responses."""
    return values_ST.gather(1, response_ST.int().argsort(dim=-1, descending=True, stable=True))


def _stack(
    batch: Mapping[str, Tensor], pad_token_id: int, nll_on: str, is_encoder_decoder: bool, start_token: int | None
) -> _Stacked:
    if is_encoder_decoder:
        return _stack_encoder_decoder(batch, pad_token_id, nll_on, start_token)
    return _stack_causal(batch, pad_token_id, nll_on)


def _stack_causal(batch: Mapping[str, Tensor], pad_token_id: int, nll_on: str) -> _Stacked:
    def stacked(name: str, value: int) -> Tensor:
        return _both(batch[f"chosen_{name}"], batch[f"rejected_{name}"], value)

    ids_ST = stacked("input_ids", pad_token_id)
    mask_ST = stacked("attention_mask", 0)
    # Position t predicts token t + 1; the last position predicts nothing.
    target_ST = F.pad(ids_ST[:, 1:], (0, 1))
    labels_ST = stacked("labels", IGNORED)
    response_ST = F.pad(labels_ST[:, 1:] != IGNORED, (0, 1))
    nll_ST = response_ST.clone() if nll_on == "response" else F.pad(sequence_targets(labels_ST, mask_ST)[:, 1:], (0, 1))
    nll_ST[len(ids_ST) // 2 :] = False
    inputs = {"input_ids": ids_ST, "attention_mask": mask_ST}
    return _Stacked(inputs, target_ST, response_ST, nll_ST, mask_ST.sum(-1))


def _stack_encoder_decoder(
    batch: Mapping[str, Tensor], pad_token_id: int, nll_on: str, start_token: int | None
) -> _Stacked:
    labels_ST = _both(batch["chosen_labels"], batch["rejected_labels"], IGNORED)
    response_ST = labels_ST != IGNORED
    target_ST = labels_ST.masked_fill(~response_ST, pad_token_id)
    nll_ST = response_ST.clone()
    nll_ST[len(labels_ST) // 2 :] = False
    inputs = {
        "input_ids": batch["prompt_input_ids"].repeat(2, 1),
        "attention_mask": batch["prompt_attention_mask"].repeat(2, 1),
        "decoder_input_ids": F.pad(target_ST[:, :-1], (1, 0), value=start_token),
    }
    return _Stacked(inputs, target_ST, response_ST, nll_ST, response_ST.sum(-1) + inputs["attention_mask"].sum(-1))


def _both(chosen_BT: Tensor, rejected_BT: Tensor, value: int) -> Tensor:
    """Stack both sides, padded on the right to the wider one: [2B, T]."""
    width = max(chosen_BT.shape[1], rejected_BT.shape[1])
    return torch.cat([F.pad(side, (0, width - side.shape[1]), value=value) for side in (chosen_BT, rejected_BT)])


def _select(place_N: Tensor, shape_ST: torch.Size, values_STX: Tensor) -> Tensor:
    """Return the values at the target positions, [N, X]; prompt tuning adds virtual positions in front of them."""
    return values_STX[:, -shape_ST[1] :].flatten(0, 1).index_select(0, place_N)


def unwrap(model: Any) -> Any:
    """Return the transformers model inside DDP and the like."""
    while hasattr(model, "module"):
        model = model.module
    return model


@contextmanager
def head_only_at(model: nn.Module, place_N: Tensor, shape_ST: torch.Size) -> Iterator[None]:
    """Pass only the hidden states at N places of [S, T] to the model's output layer while inside.

    [N, D] instead of [S, T, D]: logits cost V floats a position, and most positions of a padded batch predict no
    target. A hook on the output layer works for every model and under every wrapper, and what follows the layer
    (scaling, soft caps) is elementwise.
    """
    unwrapped = unwrap(model)
    head = unwrapped.get_output_embeddings() if hasattr(unwrapped, "get_output_embeddings") else None
    if head is None:
        yield
        return

    def select(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        return (_select(place_N, shape_ST, args[0]), *args[1:]) if len(args[0]) == shape_ST[0] else None

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
