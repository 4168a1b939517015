"""Make a small copy of a model: same class and settings, fewer and narrower layers, random weights, in float64.

What is exact about a computation does not depend on the width of its layers. On a copy it is measured at the rounding
of float64, within a tenth of a second, and with weights that hide nothing: a checkpoint may hold a module that leaks
between sequences with weights near 0, and bfloat16 rounds small leaks away.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedConfig, PreTrainedModel

from ...errors import ModelError

VOCABULARY, SPECIAL_IDS = 320, 16  # the first ids of a copy are special tokens
WIDTH, EXPERTS, POSITIONS = 64, 32, 1024  # of an MLP at most; at most so many experts; at least so many positions
SHORT_WINDOW = 8
SHORT_CHUNK = 8  # tokens: a recurrence in chunks fills its last one up, by default to 256
MOST_PARAMETERS = 200_000_000  # two seconds and 1.6 GB; reached where the settings of widths have unknown names
_MLP_WIDTHS = ("intermediate_size", "ffn", "n_inner", "dff", "d_ff")
_STACKS = {"num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers"}  # of an encoder-decoder
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def small_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Return a small copy of a transformers model on the CPU, in evaluation mode.

    Its weights are random, with deviations of 1 / sqrt(inputs) and none at 0, whatever the class starts from; the
    random numbers of the run are left as they are. ``ModelError`` if the copy is not small; any other exception says
    that the class cannot be made with these settings.
    """
    config = small_config(model)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in type(model)(copy.deepcopy(config)).parameters())
    if parameters > MOST_PARAMETERS:
        raise ModelError(f"it still has {parameters:,} parameters")
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(0)
        small = type(model)(config).double().eval().requires_grad_(False)
        for parameter in small.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
            else:  # norms around 1, biases around 0, and special ones, such as decays, near what the class made
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        small.get_input_embeddings().weight.normal_()
    return small


class Float64Everywhere(TorchFunctionMode):
    """Compute in float64 what models otherwise compute in float32 (norms, rotations, softmax, routers, recurrences).

    Where a router follows, rounding in float32 may choose other experts, and then nothing is exact.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        swap = {torch.float32: torch.float64}

        def swapped(value: Any) -> Any:
            return swap.get(value, value) if isinstance(value, torch.dtype) else value

        if func is torch.Tensor.float:
            return torch.Tensor.double(*args)
        return func(*map(swapped, args), **{name: swapped(value) for name, value in (kwargs or {}).items()})


def small_config(model: PreTrainedModel) -> PreTrainedConfig:
    """Return the configuration of a small copy: every kind of layer occurs, and windows are a few tokens long."""
    config = copy.deepcopy(model.config)
    vars(config).pop("quantization_config", None)
    shorten(config.get_text_config(), layers_of_every_kind(model))
    for part in _parts(config):
        _narrow(part)
        for name, value in list(vars(part).items()):
            if name.startswith("vocab_size") and isinstance(value, int):
                setattr(part, name, VOCABULARY)
            elif name.endswith(("token_id", "token_index")) and isinstance(value, int | list):
                setattr(part, name, len(name) % SPECIAL_IDS)
            elif is_window(name, value):
                setattr(part, name, SHORT_WINDOW)
            elif name in ("chunk_size", "mamba_chunk_size"):  # of a recurrence's algorithm, of no result
                setattr(part, name, SHORT_CHUNK)
        if isinstance(positions := getattr(part, "max_position_embeddings", None), int):
            part.max_position_embeddings = max(positions, POSITIONS)
    if config._attn_implementation not in ("eager", "sdpa"):  # flash kernels take no float64
        config._attn_implementation = "sdpa" if getattr(model, "_supports_sdpa", False) else "eager"
    config._experts_implementation = "eager"
    return config


def is_window(name: str, value: Any) -> bool:
    """Return whether an attribute of a model or configuration is how many tokens an attention sees."""
    names = ("sliding_window", "attention_window_size", "attention_chunk_size")
    return name in names and isinstance(value, int) and not isinstance(value, bool)


def layers_of_every_kind(model: PreTrainedModel) -> int:
    """Return how many layers from the first on hold every kind of layer of a model; 2 at least."""
    count, lists = _layer_lists(model)
    needed = 2
    for layers in lists:
        kinds = [_kind(layer) for layer in layers]
        needed = max(needed, *(kinds.index(kind) + 1 for kind in set(kinds)))
    return min(needed, count)


def repeating_layers(model: PreTrainedModel) -> tuple[int, int] | None:
    """Return from which layer on the kinds of a model's layers repeat, and after how many; ``None`` if they do not.

    ``(1, 1)`` where all are alike, ``(6, 6)`` where every sixth has another attention than those between.
    """
    count, lists = _layer_lists(model)
    if not lists:
        return None
    kinds = [tuple(map(_kind, layers)) for layers in zip(*lists, strict=True)]
    found = []
    for period in range(1, count):
        start = max([i + 1 for i in range(period, count) if kinds[i] != kinds[i - period]], default=period)
        if start + period < count:
            found.append((start, period))
    return min(found, key=sum, default=None)


def _layer_lists(model: PreTrainedModel) -> tuple[int, list[nn.ModuleList]]:
    """Return how many layers a model has, and its lists of so many modules."""
    count = getattr(model.config.get_text_config(), "num_hidden_layers", 0)
    return count, [one for one in model.modules() if isinstance(one, nn.ModuleList) and len(one) == count]


def _kind(layer: nn.Module) -> tuple[str, ...]:
    """Return what tells kinds of layers apart: modules, their switches, and the types of their other attributes."""
    switches = [
        f"{name}={value if isinstance(value, bool | str) else type(value).__name__}"
        for module in layer.modules()
        for name, value in vars(module).items()
        if not name.startswith("_")
    ]
    return repr(layer), *switches


def _parts(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    yield config
    for value in vars(config).values():
        if isinstance(value, PreTrainedConfig):
            yield from _parts(value)


def shorten(config: PreTrainedConfig, layers: int) -> None:
    """Keep the first layers, and of every list over the layers its first entries; of an encoder and a decoder alike."""
    count = getattr(config, "num_hidden_layers", 0)
    if layers < count:
        for name in _STACKS & vars(config).keys():
            setattr(config, name, min(layers, getattr(config, name)))
        for name, value in list(vars(config).items()):
            if isinstance(value, list | tuple) and len(value) == count:
                setattr(config, name, value[:layers])
        config.num_hidden_layers = layers


def _narrow(config: PreTrainedConfig) -> None:
    """Keep two or four heads of their width, in groups if they are now, narrow MLPs, and some of many experts."""
    hidden, heads = (getattr(config, name, None) for name in ("hidden_size", "num_attention_heads"))
    key_heads = getattr(config, "num_key_value_heads", None)
    if isinstance(hidden, int) and isinstance(heads, int):
        # getattr refuses what differs by layer, as in Gemma 4.
        own_width = vars(config).get("head_dim") if "head_dim" in vars(config) else getattr(config, "head_dim", None)
        width = own_width if isinstance(own_width, int) else hidden // heads
        if key_heads in (None, heads):
            new_heads, new_key_heads = 2, 2
        else:
            new_heads, new_key_heads = (2, 1) if key_heads == 1 or width > WIDTH else (4, 2)
        if heads > new_heads:
            config.hidden_size, config.num_attention_heads = new_heads * width, new_heads
            if isinstance(key_heads, int):
                config.num_key_value_heads = new_key_heads
    for name, value in list(vars(config).items()):
        if any(width in name for width in _MLP_WIDTHS):
            setattr(config, name, _at_most(value, WIDTH))
        elif name in _EXPERTS:
            setattr(config, name, _at_most(value, EXPERTS))


def _at_most(value: Any, most: int) -> Any:
    if isinstance(value, list):
        return [_at_most(one, most) for one in value]
    return min(value, most) if isinstance(value, int) else value
