"""Say how the weights of a model are quantised where they are stored, what can be trained on them, and their size.

A configuration with ``quantization_config`` is of a model whose weights are stored in 8 or 4 bits: bitsandbytes, GPTQ,
AWQ, fp8, ... Transformers computes with them as they are, under an adapter, or unpacks them to 16 bits on loading: fp8
where there is no GPU for it, for one. Unpacked weights are like any others.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig

from ...errors import ConfigError, ModelError
from .load_errors import clear_errors

PLAIN_TYPES = ("F64", "F32", "F16", "BF16", "I64", "BOOL")  # in safetensors; those of quantised weights are others
FP8_FROM = (8, 9)  # compute capability of GPUs that compute in fp8; elsewhere transformers unpacks it
# What transformers lets an adapter be trained on, wherever its packages are installed (``is_trainable`` of 5.23).
TRAINABLE = ("aqlm", "awq", "bitsandbytes", "compressed-tensors", "eetq", "fp8", "gptq", "hqq", "quanto", "sinq")
# NF4 with double quantisation: 4 bits a weight, 8 for 64 of them, 32 for 256 of those. Without it 32 for 64.
NESTED_BYTES, PLAIN_4BIT_BYTES, BYTES_8BIT = 0.5 + 1 / 64 + 4 / (64 * 256), 0.5 + 4 / 64, 1.0


@dataclass(frozen=True)
class StoredQuantisation:
    """How the weights of a model are stored, where a run keeps them so."""

    method: str  # as its configuration has it: ``"fp8"``, ``"gptq"``, ...
    is_trainable: bool  # whether an adapter can be trained on them
    bytes_per_weight: float | None  # with its scales; None: not known


class StoredSizes(NamedTuple):
    """The weights in the files of a quantised model."""

    quantised_bytes: int  # with scales and zero points
    plain_numbers: int  # numbers that are not quantised


def stored_quantisation(
    name: str, config: PreTrainedConfig, *, is_here: bool = True, capability: tuple[int, int] | None = None
) -> StoredQuantisation | None:
    """Return how the weights of a model are quantised in a run; ``None`` where they are not, or are unpacked.

    Args:
        name: Of the model.
        config: Its configuration.
        is_here: Whether the run is on this machine, whose packages and devices then count.
        capability: Otherwise the compute capability of the GPU, if it is known.

    Returns:
        The quantisation, or ``None``.

    Raises:
        ModelError: It cannot be loaded on this machine.
    """
    given: Any = getattr(config, "quantization_config", None)
    given = given or getattr(config.get_text_config(), "quantization_config", None)
    if given is None:
        return None
    settings = given if isinstance(given, dict) else given.to_dict()
    method = str(settings.get("quant_method") or ("bitsandbytes" if "load_in_4bit" in settings else "unknown"))
    method = method.rpartition(".")[2].lower()  # also of an enumeration
    if not is_here:
        is_unpacked = method == "fp8" and capability is not None and capability < FP8_FROM
        return None if is_unpacked else StoredQuantisation(method, method in TRAINABLE, _bytes_of(method, settings))
    from transformers.quantizers.auto import AutoHfQuantizer  # half a second, for few models

    with clear_errors(name, "main"):
        if not AutoHfQuantizer.supports_quant_method(settings):
            return None  # transformers says that it takes the weights as they are
        quantizer = AutoHfQuantizer.from_config(copy.deepcopy(given), pre_quantized=True)
        quantizer.validate_environment(device_map=None, weights_only=True)
        if getattr(quantizer.quantization_config, "dequantize", False):
            return None
        return StoredQuantisation(method, bool(quantizer.is_trainable), _bytes_of(method, settings))


def require_trainable_base(name: str, stored: StoredQuantisation | None, *, adapter: bool, quantise: bool) -> None:
    """Refuse what cannot be trained on quantised weights.

    Args:
        name: Of the model.
        stored: How its weights are stored.
        adapter: Whether an adapter is trained.
        quantise: Whether the settings ask to quantise the weights.

    Raises:
        ModelError: Nothing can be trained on them, or all weights would be.
        ConfigError: They would be quantised twice.
    """
    if stored is None:
        return
    said = f"{name}: its weights are stored quantised ({stored.method})"
    if not stored.is_trainable:
        raise ModelError(f"{said}, and nothing can be trained on these; take its weights in 16 bits")
    if quantise and stored.method != "bitsandbytes":
        raise ConfigError(f"{said}; leave load_in_4bit and load_in_8bit out")
    if not adapter:
        raise ModelError(f"{said}, which can be trained with an adapter alone; add use_peft, or take those in 16 bits")


def stored_sizes(folder: Path) -> StoredSizes | None:
    """Return the sizes of what the files of a model hold; ``None`` where no safetensors are there.

    A module is quantised if one of its tensors has no plain type; all of its tensors count with it.
    """
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    modules: dict[str, list[tuple[str, int, int]]] = defaultdict(list)  # by path: type, numbers, bytes
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118  it is no mapping
                    tensor = opened.get_slice(key)
                    kind, numbers = str(tensor.get_dtype()), _product(tensor.get_shape())
                    # Those of bitsandbytes are beneath the weight.
                    path = key.partition(".weight.")[0] if ".weight." in key else key.rpartition(".")[0]
                    modules[path].append((kind, numbers, numbers * _bits(kind) // 8))
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file}: cannot be read ({error}); fetch or copy it again") from error
    if not modules:
        return None
    quantised_bytes = plain_numbers = 0
    for tensors in modules.values():
        if any(kind not in PLAIN_TYPES for kind, *_ in tensors):
            quantised_bytes += sum(size for *_, size in tensors)
        else:
            plain_numbers += sum(numbers for _, numbers, _ in tensors)
    return StoredSizes(quantised_bytes, plain_numbers)


def _product(shape: list[int]) -> int:
    numbers = 1
    for size in shape:
        numbers *= size
    return numbers


def _bits(kind: str) -> int:
    digits = "".join(char for char in kind.split("_")[0] if char.isdigit())
    return int(digits) if digits else 8


def _bytes_of(method: str, settings: dict[str, Any]) -> float | None:
    """Return the bytes of a quantised weight with its scales, by its settings; ``None`` where they do not tell."""
    try:
        if method == "bitsandbytes":
            if settings.get("load_in_8bit"):
                return BYTES_8BIT
            return NESTED_BYTES if settings.get("bnb_4bit_use_double_quant") else PLAIN_4BIT_BYTES
        if method in ("gptq", "awq"):
            bits = int(settings.get("bits") or settings["w_bit"]) / 8
            group = int(settings.get("group_size") or settings.get("q_group_size") or 128)
            return bits + ((2 + bits) / group if group > 0 else 0.0)
        if method == "fp8":
            rows, columns = settings.get("weight_block_size") or (128, 128)
            return 1 + 4 / (rows * columns)
        if method == "compressed-tensors":
            return max(int(group["weights"]["num_bits"]) for group in settings["config_groups"].values()) / 8
    except (KeyError, TypeError, ValueError):
        pass
    return {"mxfp4": 0.5 + 1 / 32, "fbgemm_fp8": 1.0, "eetq": 1.0}.get(method)
