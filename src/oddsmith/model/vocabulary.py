"""Give new tokens rows in a model's embeddings, and let an adapter train these rows alone.

    token        row in the embeddings                      at the start          under LoRA
    added        beyond the last one: they are enlarged     mean of all rows      trained (PEFT's trainable tokens)
    added        one of those that pad the embeddings       mean of all rows      trained
    known        never trained (all zero, or the mean)      as it is; zero: mean  trained
    known        trained                                    as it is              frozen

Rows start at the mean, as transformers' ``mean_resizing`` has it, but without its noise of 3e-5 deviations: so the rows
of a base are the same each time, and only those that are trained need to be saved. Source: Hewitt, "Initializing New
Word Embeddings for Pretrained Language Models", 2021.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper, TrainableTokensWrapper
from torch import Tensor
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled

from ..system.shards import gathered, whole_shape
from .merging import is_tied, plain_layer

SAMPLE_ROWS = 4096  # of an embedding, from which the deviation of its values is estimated
NEAR_MEAN = 0.01  # deviations in every value: a trained row of 64 values is so near with a probability of 1e-134
_GROWN = "oddsmith_grown_rows"  # attribute of a model
ZERO = 1e-16  # largest value of a row that was never trained


def grow_embeddings(model: PreTrainedModel, rows: int) -> None:
    """Enlarge the embeddings, and the head if it is a weight of its own, to ``rows``; larger ones stay as they are."""
    before = whole_shape(_embedding(model).weight)[0]
    if rows <= before:
        return
    is_partitioned = is_deepspeed_zero3_enabled()  # transformers gathers the weights that it takes the mean of
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(0)
        model.resize_token_embeddings(rows, mean_resizing=is_partitioned)
    if not is_partitioned:
        start_at_mean(model, range(before, rows))
    setattr(model, _GROWN, rows)


def grown_rows(model: Any) -> int | None:
    """Return to how many rows ``grow_embeddings`` has enlarged the embeddings of a model, under an adapter or not."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return getattr(base, _GROWN, None)


def start_at_mean(model: PreTrainedModel, tokens: Sequence[int], peft_config: Any = None) -> None:
    """Set the rows of tokens to the mean of all other rows, in the embedding and in the head.

    A layer that ``peft_config`` targets stays as it is: the adapter to come adds to it, and saves none of its rows.
    """
    paths = {module: path for path, module in model.named_modules()}
    for layer in _layers(model):
        if peft_config is not None and _is_target(peft_config, paths[layer]):
            continue
        with torch.no_grad(), gathered(layer.parameters(), is_changed=True):
            is_other = torch.ones(len(layer.weight), dtype=torch.bool, device=layer.weight.device)
            is_other[list(tokens)] = False
            layer.weight[list(tokens)] = _mean(layer.weight[is_other]).to(layer.weight.dtype)
            if getattr(layer, "bias", None) is not None:
                layer.bias[list(tokens)] = layer.bias[is_other].mean()


def trains_rows(model: Any, tokens: Sequence[int]) -> bool:
    """Return whether the adapter in a model changes the rows of tokens, in the embedding and in the head."""
    head = model.get_output_embeddings()
    layers = [model.get_input_embeddings(), *([] if head is None or is_tied(model) else [head])]

    def trains(layer: Any) -> bool:
        if isinstance(layer, TrainableTokensWrapper):
            return set(tokens) <= {token for some in layer.token_adapter.token_indices.values() for token in some}
        return isinstance(layer, ModulesToSaveWrapper | BaseTunerLayer)

    return all(map(trains, layers))


def untrained(model: PreTrainedModel, tokens: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return which of the tokens have rows of zeros in the embedding or the head, and which have the mean there.

    Rows that were added by transformers' ``mean_resizing`` are near the mean.
    """
    zero, near_mean = set(), set()
    tokens = [token for token in tokens if token < whole_shape(_embedding(model).weight)[0]]
    for layer in _layers(model) if tokens else ():
        with gathered([layer.weight]):
            weight = layer.weight.detach()
            if not weight.is_floating_point() or weight.ndim != 2:  # packed
                continue
            spread = weight[:: max(1, len(weight) // SAMPLE_ROWS)].float().std(0)
            rows = weight[list(tokens)].float()
            zero |= {t for t, row in zip(tokens, rows, strict=True) if row.abs().max() <= ZERO}
            near = ((rows - _mean(weight)).abs() <= NEAR_MEAN * spread).all(1)
            near_mean |= {t for t, is_near in zip(tokens, near.tolist(), strict=True) if is_near}
    return sorted(zero), sorted(near_mean - zero)


def train_rows(model: PreTrainedModel, peft_config: Any, tokens: Sequence[int]) -> Any:
    """Let an adapter train the rows of some tokens, and return its settings, in a copy.

    A layer that the adapter trains or changes already stays as it is. An adapter that cannot train single rows, or a
    head with a bias, which PEFT's layer would leave out, trains the layers in full.
    """
    peft_config = copy.deepcopy(peft_config)
    paths = {module: path for path, module in model.named_modules()}
    can_train_rows = hasattr(peft_config, "trainable_token_indices")
    in_full = list(getattr(peft_config, "modules_to_save", None) or [])
    rows = getattr(peft_config, "trainable_token_indices", None) or {}
    rows = {paths[_embedding(model)]: rows} if isinstance(rows, list) else dict(rows)
    for layer in _layers(model):
        path = paths[layer]
        # A tied head is named by either of its paths.
        one_weight = [path_of for module, path_of in paths.items() if getattr(module, "weight", None) is layer.weight]
        if any(_names(name, path_of) for name in in_full for path_of in one_weight) or _is_target(peft_config, path):
            continue
        if can_train_rows and getattr(layer, "bias", None) is None:
            key = next((name for name in rows if _names(name, path)), path)
            rows[key] = sorted({*rows.get(key, ()), *tokens})
        else:
            in_full.append(path.rpartition(".")[2])
    if can_train_rows:
        peft_config.trainable_token_indices = rows or None
    if hasattr(peft_config, "modules_to_save"):
        peft_config.modules_to_save = in_full or None
    return peft_config


def rows_of_adapter(peft_config: Any) -> int:
    """Return how many rows the embeddings need for the tokens that an adapter trains; 0 where it trains none."""
    tokens = getattr(peft_config, "trainable_token_indices", None) or ()
    lists = tokens.values() if isinstance(tokens, dict) else [tokens]
    return max((token + 1 for some in lists for token in some), default=0)


def _names(name: str, path: str) -> bool:
    return path == name or path.endswith("." + name)


def _is_target(peft_config: Any, path: str) -> bool:
    targets = getattr(peft_config, "target_modules", None) or ()
    if isinstance(targets, str):  # a pattern, or all-linear, which means neither embedding nor head
        return re.fullmatch(targets, path) is not None
    return any(_names(target, path) for target in targets)


def _embedding(model: PreTrainedModel) -> Any:
    return plain_layer(model.get_input_embeddings())


def _layers(model: PreTrainedModel) -> list[Any]:
    """Return the embedding, and the head where it is not the same weight."""
    head = model.get_output_embeddings()
    layers = [_embedding(model)]
    return layers if head is None or is_tied(model) else [*layers, plain_layer(head)]


def _mean(weight: Tensor) -> Tensor:
    """Return the mean of rows, in float32 or better."""
    return weight.mean(0, dtype=weight.dtype if weight.dtype == torch.float64 else torch.float32)
