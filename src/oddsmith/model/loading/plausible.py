"""Refuse settings of a model that its weights cannot fill, before anything of that size is built.

transformers builds what ``config.json`` asks for and reads the weights afterwards: ten million layers, a list of a
thousand million labels. Here the numbers are looked at first. Layers are compared with how many tensors lie beside
them; where two sizes together exceed the weights on the disk, the model is outlined without memory and measured.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig

from ...errors import ModelError
from ...system.outside import read_text
from ...system.strict_json import read_object

MAX_LAYERS = 2_048
MAX_EXPERTS = 2**17  # of all layers together
MAX_LABELS = 100_000
MAX_SIZE = 2**26  # of one dimension
MAX_NUMBER = 2**40
MAX_ENTRIES = 2**18
SMALLEST_OUTLINE = 2**22  # parameters; fewer are never refused
PARAMETERS_IN_A_BYTE = 8
LARGEST_BUFFERS = 64  # numbers that are computed (masks, tables of positions), for each parameter

_LAYERS = re.compile(r"^(n|num|encoder|decoder|text|vision|audio)?_?(hidden|encoder|decoder)?_?(layers?|blocks|depth)$")
_EXPERTS = re.compile(r"^(n|num|routed|local|shared|moe)_.*experts$|^num_experts$")
# Numbers that make nothing: positions that are computed, ids of tokens, frequencies, settings of other programs.
_NO_SIZE = re.compile(
    r"position|length|window|theta|context|ctx|base|seed|factor|token|_id$|chunk|scal|version|quant|bits|freq|limit|max_"
    r"|param|flo|total|bytes|step|date|time"
)


def require_plausible_settings(name: str, file: Path) -> None:
    """Raise ``ModelError`` for a ``config.json`` that is no mapping, or that asks for more than any model has."""
    try:
        settings = read_object(read_text(file))
    except ValueError as error:
        raise ModelError(f"{name}: its {file.name} is damaged ({error}); fetch or copy it again") from error
    require_plausible_numbers(name, file.name, settings, _count_tensors(file.parent))


def require_plausible_numbers(name: str, where: str, settings: dict[str, Any], tensors: int | None = None) -> None:
    """Raise ``ModelError`` for numbers in settings that no model has, or none of so many tensors."""
    layers = experts = 1
    for key, value in _numbers(settings):
        most, what = MAX_NUMBER, ""
        if key == "num_labels":
            most = MAX_LABELS
        elif _LAYERS.search(key):
            layers = max(layers, value)
            most = MAX_LAYERS if tensors is None else min(MAX_LAYERS, tensors)
            what = "" if most == MAX_LAYERS else f", as its weights are {tensors:,} tensors"
        elif _EXPERTS.search(key):
            experts = max(experts, value)
            most = MAX_EXPERTS
        elif not _NO_SIZE.search(key):
            most = MAX_SIZE
        if value > most:
            raise ModelError(f"{name}: its {where} says {key[:100]} = {value:,}; expected at most {most:,}{what}")
    if layers * experts > MAX_EXPERTS:
        found = f"{layers:,} layers of {experts:,} experts"
        raise ModelError(f"{name}: its {where} asks for {found}; expected at most {MAX_EXPERTS:,} experts in all")


def require_plausible_size(name: str, place: Path, config: PreTrainedConfig, auto_class: Any) -> None:
    """Raise ``ModelError`` where a model on this disk has far more parameters than its weights have bytes.

    Safetensors hold two parameters in a byte at most, a GGUF file five. Only settings with large numbers are outlined,
    which takes about a second for a model of many layers.
    """
    if place.is_file():
        weights = place.stat().st_size
    elif place.is_dir() and not _is_of_hub(place):
        weights = sum(file.stat().st_size for file in place.glob("*.safetensors"))
    else:
        return
    if not weights:
        return  # from_pretrained says what is missing
    most = max(SMALLEST_OUTLINE, PARAMETERS_IN_A_BYTE * weights)
    sizes = sorted((value for key, value in _numbers(config.to_dict()) if not _is_harmless(key, value)), reverse=True)
    if math.prod(sizes[:2]) <= most:
        return
    with torch.device("meta"):
        model = auto_class.from_config(config)
    asked = sum(parameter.numel() for parameter in model.parameters())
    asked = max(asked, sum(buffer.numel() for buffer in model.buffers()) // LARGEST_BUFFERS)
    if asked > most:
        raise ModelError(
            f"{name}: its settings ask for {asked:,} parameters, but its weights have {weights:,} bytes; fetch or copy"
            " the whole model again"
        )


def _is_harmless(key: str, value: int) -> bool:
    return value <= 2**26 and bool(_NO_SIZE.search(key))


def _numbers(settings: Any) -> Iterator[tuple[str, int]]:
    """Yield the whole numbers in settings, each with its key."""
    waiting = [("", settings)]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, dict | list | tuple):
            if len(value) > MAX_ENTRIES:
                raise ModelError(
                    f"a model's {key[:100] or 'settings'} have {len(value):,} entries; expected at most {MAX_ENTRIES:,}"
                )
            inside = value.items() if isinstance(value, dict) else ((key, one) for one in value)
            waiting += [(str(name), one) for name, one in inside]
        elif isinstance(value, int) and not isinstance(value, bool):
            yield key, value


def _count_tensors(folder: Path) -> int | None:
    """Return how many tensors the safetensors in a folder have; ``None`` where there are none, or none that open."""
    count = 0
    if _is_of_hub(folder):
        return None
    for file in folder.glob("*.safetensors"):
        try:
            with safe_open(file, framework="pt") as weights:
                count += len(weights.keys())
        except (SafetensorError, OSError):
            return None
    return count or None


def _is_of_hub(folder: Path) -> bool:
    """Return whether a folder is in the hub's cache, where weights may still be on their way."""
    return folder.resolve().parent.name == "snapshots"
