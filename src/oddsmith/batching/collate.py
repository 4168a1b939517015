"""Pad tokenized pairs to the tensors of a micro-batch.

The keys are TRL's (``chosen_input_ids``, ``chosen_attention_mask``, ``chosen_labels``, and the same for ``rejected``),
so a data collator written for TRL works here. Masks come from lengths, never from token ids, so padding with the end
token is harmless.

    chosen_input_ids       p p p r r e . .      p prompt   r response   e end of turn   . padding
    chosen_attention_mask  1 1 1 1 1 1 0 0
    chosen_labels          - - - r r e - -      - = -100, no target

Of a response of several turns, what stands between the assistant's own has no labels either.

Shape suffixes: B pairs, T tokens of the longest sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

IGNORED = -100
SIDES = ("chosen", "rejected")
# Columns of a tokenized row that hold its tokens; the others are texts, and what the user's rows have beside the pair.
OF_TOKENS = {"row", "prompt_input_ids"} | {
    f"{side}_{part}" for side in SIDES for part in ("input_ids", "prompt_tokens", "end", "gaps")
}
# Names of TRL's columns of tokens.
OF_TRL = {f"{part}_{of}" for part in ("prompt", *SIDES) for of in ("input_ids", "attention_mask", "labels")}


def trl_features(row: Mapping[str, Any], is_encoder_decoder: bool = False) -> dict[str, Any]:
    """Return a tokenized row under TRL's column names: ids and attention mask of the prompt and of each side, labels.

    Tokens after the end of the turn are left out: no target needs them, and a causal model does not see them.
    """
    ids = row["prompt_input_ids"] if is_encoder_decoder else row["chosen_input_ids"][: row["chosen_prompt_tokens"]]
    features: dict[str, Any] = {"prompt_input_ids": list(ids), "prompt_attention_mask": [1] * len(ids)}
    for side in SIDES:
        ids = list(row[f"{side}_input_ids"][: row[f"{side}_end"]])
        prompt = row[f"{side}_prompt_tokens"]
        labels = [IGNORED] * prompt + ids[prompt:]
        for start, end in gaps_of(row, side):
            labels[start:end] = [IGNORED] * (end - start)
        features[f"{side}_labels"] = labels
        if not is_encoder_decoder:
            features[f"{side}_input_ids"] = ids
            features[f"{side}_attention_mask"] = [1] * len(ids)
    return features


def gaps_of(row: Mapping[str, Any], side: str) -> list[tuple[int, int]]:
    """Return the gaps between the targets of a tokenized row: start, and one past the end."""
    places = row.get(f"{side}_gaps", ())
    return list(zip(places[::2], places[1::2], strict=True))


def sequence_targets(labels_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Return the NLL targets of whole sequences: prompt and response without the gaps in it, bool [B, T].

    A gap is what has no label after the first label, whatever made the batch. The first token is among the targets
    here, although nothing predicts it.
    """
    is_target_BT = labels_BT != IGNORED
    is_prompt_BT = is_target_BT.cumsum(-1) == 0
    return (mask_BT == 1) & (is_target_BT | is_prompt_BT)


@dataclass
class PairCollator:
    """Pad the features of some pairs on the right; any ``pad_token_id`` will do, as it never affects the result."""

    pad_token_id: int

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Stack features from :func:`trl_features`, or tokenized rows, into tensors [B, T], int64; others in lists."""
        if "chosen_end" in features[0]:  # rows of a trainer's dataset, in a data loader of the user's own
            features = [trl_features(row, bool(row.get("prompt_input_ids"))) for row in features]
        fill = {"input_ids": self.pad_token_id, "attention_mask": 0, "labels": IGNORED}
        batch: dict[str, Any] = {key: [feature[key] for feature in features] for key in features[0]}
        return {
            key: padded(values, fill[key.partition("_")[2]]) if key in OF_TRL else values
            for key, values in batch.items()
        }


@dataclass
class PaddedTensors:
    """Turn tokenized rows into padded tensors, with ``PairCollator`` or any collator written for TRL's columns."""

    collator: Callable[[list[dict[str, Any]]], dict[str, Any]]
    is_encoder_decoder: bool = False
    with_columns: bool = False  # whether the collator also gets what a row has beside its tokens

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the tensors of some rows."""
        features = [trl_features(row, self.is_encoder_decoder) for row in rows]
        if self.with_columns:
            for feature, row in zip(features, rows, strict=True):
                feature.update({name: value for name, value in row.items() if name not in OF_TOKENS | OF_TRL})
        return self.collator(features)


def padded(rows: Sequence[Sequence[int] | np.ndarray], value: int) -> Tensor:
    """Pad rows of integers on the right with ``value``: int64 [B, T], with T at least 1."""
    width = max(1, *map(len, rows))
    padded_BT = torch.full((len(rows), width), value, dtype=torch.long)
    for i, row in enumerate(rows):
        padded_BT[i, : len(row)] = torch.as_tensor(row, dtype=torch.long)
    return padded_BT
