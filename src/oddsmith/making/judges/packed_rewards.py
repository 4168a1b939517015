"""Compute the rewards of several answers to a prompt on a prefix forest, so that the prompt is computed once.

A reward is the head's output at the last token of an answer. On packed rows (``batching/forest.py``) that token has the
hidden state that it has in its own sequence, so nothing else changes. Only models are packed for which the trainer's
self-check (``model/logprobs/self_check.py``) finds packed rows exact.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_layers import GenericForSequenceClassification

from ...batching.forest import pack
from ...model.loading.setup import disable_dropout
from ...model.logprobs.attention import forest_attention_in
from ...model.logprobs.current_layout import set_layout
from ...model.logprobs.self_check import check_outline


def is_packable(model: PreTrainedModel) -> bool:
    """Return whether rewards of a model can be computed on packed rows: its head is linear, and its layers allow it."""
    config = copy.deepcopy(model.config)
    if not isinstance(model, GenericForSequenceClassification) or config.is_encoder_decoder:
        return False
    if type(config) not in AutoModelForCausalLM._model_mapping:
        return False
    with torch.device("meta"):
        generator = AutoModelForCausalLM.from_config(config)
    disable_dropout(generator)
    verdict = check_outline(generator)
    return verdict.forest and verdict.sequence_wise is not None and not verdict.sequence_wise.modules


@torch.no_grad()
def packed_logits(model: Any, sequences: Sequence[Sequence[int]], pad_token_id: int | None) -> Tensor:
    """Return the logits of all heads for sequences that share beginnings, [S, H].

    Args:
        model: A model for which ``is_packable`` returns true.
        sequences: Token ids, none empty.
        pad_token_id: The model's. transformers reads a reward at the last token that is another one.

    Returns:
        What the model gives for each sequence alone.
    """
    ids_T, rows_of, layout = pack([np.asarray(ids) for ids in sequences])
    device = model.device
    layout = layout.to(device)
    with forest_attention_in(model):
        set_layout(layout)
        states = model.base_model(
            input_ids=torch.from_numpy(ids_T)[None].to(device), position_ids=layout.depth_T[None], use_cache=False
        ).last_hidden_state[0]
    ends = [rows[_last(ids, pad_token_id)] for ids, rows in zip(sequences, rows_of, strict=True)]
    logits: Tensor = model.score(states[ends])
    return logits


def _last(ids: Sequence[int], pad_token_id: int | None) -> int:
    """Return the place of the last token that is no pad token; the first where there is none, as transformers does."""
    if pad_token_id is None:
        return len(ids) - 1
    places = np.flatnonzero(np.asarray(ids) != pad_token_id)
    return int(places[-1]) if len(places) else 0
