"""Say what a stored tensor becomes in llama.cpp: left out, renamed, or reordered parts of it.

name in the model folder -> ``text_name`` -> a family's ``parts`` -> names of llama.cpp, by the table of ``gguf``

Source: llama.cpp, conversion/*.py. Shapes: E experts, F width of an expert, H hidden units, R rotated dimensions of a
head / 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from gguf import MODEL_TENSOR, TENSOR_NAMES

from .settings import Settings, head_dimensions, rope_of

Change = Callable[[torch.Tensor], torch.Tensor]

# Modules for images and sounds in vision-language models.
OTHER_INPUTS = {
    "vision_tower", "vision_model", "visual", "multi_modal_projector", "embed_vision", "audio_tower", "embed_audio",
}  # fmt: skip
PREDICTS_AHEAD = "mtp"  # layers that guess tokens further ahead; transformers neither computes nor trains them


class Part(NamedTuple):
    """A tensor of the new file, as a function of the stored one."""

    name: str  # as the table of ``gguf`` knows it
    change: Change = lambda values: values


Parts = Callable[[str, Settings], list[Part]]  # of a stored tensor, by its name


def text_name(key: str) -> str | None:
    """Return the name of a tensor in a model of text alone; ``None`` for one that is not of the text part."""
    path = key.split(".")
    if OTHER_INPUTS & set(path) or PREDICTS_AHEAD in path[:2]:
        return None
    if "language_model" not in path:
        return key
    path.remove("language_model")
    return ".".join(path if path[0] in ("model", "lm_head") else ["model", *path])


def as_stored(name: str, settings: Settings) -> list[Part]:
    """Keep a tensor as it is."""
    return [Part(name)]


def interleaved_heads(name: str, settings: Settings) -> list[Part]:
    """Reorder the rows of q and k, for families that llama.cpp rotates in pairs."""
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(_module(name))
    return [Part(name, partial(interleave_heads, heads=settings[heads]))] if heads else [Part(name)]


def norms_from_one(name: str, settings: Settings) -> list[Part]:
    """Add 1 to the weights of norms, for families that compute with 1 + weight (Gemma)."""
    return [Part(name, _plus_one)] if name.endswith("norm.weight") else [Part(name)]


def split_experts(name: str, settings: Settings) -> list[Part]:
    """Cut stacked experts ``[E, 2F, H]`` into gates and ups ``[E, F, H]``."""
    stem, _, kind = name.rpartition(".")
    if kind == "gate_up_proj":
        return [Part(f"{stem}.gate_proj.weight", _first_half), Part(f"{stem}.up_proj.weight", _second_half)]
    return [Part(f"{name}.weight" if kind == "down_proj" else name)]


def gpt_oss_parts(name: str, settings: Settings) -> list[Part]:
    """Cut the experts of gpt-oss, ``[E, H, 2F]`` with gates and ups in turn, and name its sinks."""
    stem, _, kind = name.rpartition(".")
    if kind == "sinks":
        return [Part(f"{name}.weight")]
    if kind.startswith("gate_up_proj"):
        end = "bias" if kind.endswith("bias") else "weight"
        return [
            Part(f"{stem}.{part}_proj.{end}", partial(_every_second, start=start, transposed=end == "weight"))
            for start, part in enumerate(("gate", "up"))
        ]
    if kind == "down_proj":
        return [Part(f"{name}.weight", lambda values: values.transpose(-1, -2))]
    return [Part(name.replace("down_proj_bias", "down_proj.bias"))]


def lfm2_parts(name: str, settings: Settings) -> list[Part]:
    """Drop the middle dimension of LFM2's convolutions ``[H, 1, K]``."""
    return [Part(name, lambda values: values.squeeze(1)) if ".conv.conv." in name else Part(name)]


def qwen35_parts(name: str, settings: Settings) -> list[Part]:
    """Say what becomes of Qwen3.5: decays, norms and convolutions in another form, value heads in another order."""
    change = _qwen35_order(name, settings)
    if name.endswith(".A_log"):
        return [Part(name, lambda values: -torch.exp(change(values.float())))]
    if name.endswith(".dt_bias"):
        return [Part(name.removesuffix("dt_bias") + "dt_proj.bias", change)]
    if ".conv1d." in name:
        return [Part(name, lambda values: change(values.squeeze(1)))]
    if name.endswith("norm.weight") and not name.endswith("linear_attn.norm.weight"):
        return [Part(name, _plus_one)]
    return [Part(part.name, change) if part.name == name else part for part in split_experts(name, settings)]


def _qwen35_order(name: str, settings: Settings) -> Change:
    """Return how value heads of linear attention are reordered in a tensor: by groups here, in turn in llama.cpp.

    Of two key heads a and b with two value heads each, ``a0 a1 b0 b1`` becomes ``a0 b0 a1 b1``.
    """
    groups, heads = settings["linear_num_key_heads"], settings["linear_num_value_heads"]
    key_rows, width = groups * settings["linear_key_head_dim"], settings["linear_value_head_dim"]
    if groups == heads or ".linear_attn." not in name:
        return lambda values: values

    def reorder(values: torch.Tensor, width: int) -> torch.Tensor:
        return values.reshape(groups, heads // groups, width, *values.shape[1:]).swapaxes(0, 1).reshape(values.shape)

    def values_only(values: torch.Tensor) -> torch.Tensor:
        return torch.cat([values[: 2 * key_rows], reorder(values[2 * key_rows :], width)])

    orders: dict[str, Change] = {
        "in_proj_qkv": values_only,
        "conv1d": values_only,
        "in_proj_z": partial(reorder, width=width),
        "in_proj_a": partial(reorder, width=1),
        "in_proj_b": partial(reorder, width=1),
        "out_proj": lambda values: reorder(values.T, width).T,
    }
    if name.endswith((".A_log", ".dt_bias")):
        return partial(reorder, width=1)
    return orders.get(_module(name), lambda values: values)


def _module(name: str) -> str:
    """Return the name of the module that a weight is in."""
    return name.split(".")[-2] if "." in name else ""


def _plus_one(values: torch.Tensor) -> torch.Tensor:
    return values.float() + 1.0


def _first_half(values: torch.Tensor) -> torch.Tensor:
    return values[..., : values.shape[-2] // 2, :]


def _second_half(values: torch.Tensor) -> torch.Tensor:
    return values[..., values.shape[-2] // 2 :, :]


def _every_second(values: torch.Tensor, start: int, transposed: bool) -> torch.Tensor:
    return values.transpose(-1, -2)[:, start::2] if transposed else values[..., start::2]


def interleave_heads(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Return weights ``[heads * 2R, inputs]`` or a bias ``[heads * 2R]`` in the row order that llama.cpp rotates.

    transformers rotates row i of a head with row i + R, llama.cpp with the next: ``x0 x1 .. y0 y1 ..`` becomes
    ``x0 y0 x1 y1 ..``.
    """
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def llama3_rope_factors(settings: Settings) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the divisors of Llama 3.1's rotary frequencies, float32 ``[R]``: the factor for long waves, 1 for short."""
    rope = rope_of(settings)
    if rope.get("rope_type") != "llama3":
        return
    dimensions = head_dimensions(settings)
    frequency_R = 1.0 / (rope["rope_theta"] ** (torch.arange(0, dimensions, 2, dtype=torch.float32) / dimensions))
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    original = rope["original_max_position_embeddings"]
    wavelength_R = 2 * math.pi / frequency_R
    smooth_R = (original / wavelength_R - low) / (high - low)
    factor_R = 1 / ((1 - smooth_R) / factor + smooth_R)
    factor_R = torch.where(wavelength_R > original / low, torch.full_like(factor_R, factor), factor_R)
    factor_R = torch.where(wavelength_R < original / high, torch.ones_like(factor_R), factor_R)
    yield TENSOR_NAMES[MODEL_TENSOR.ROPE_FREQS] + ".weight", factor_R


def phi3_rope_factors(settings: Settings) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the factors of LongRoPE for long and for short texts, float32 ``[R]`` each."""
    tensors = {"long_factor": MODEL_TENSOR.ROPE_FACTORS_LONG, "short_factor": MODEL_TENSOR.ROPE_FACTORS_SHORT}
    rope = rope_of(settings)
    for key, tensor in tensors.items():
        if rope.get(key):
            yield TENSOR_NAMES[tensor] + ".weight", torch.tensor(rope[key], dtype=torch.float32)
