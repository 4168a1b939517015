"""List the model families that can be converted: how each is written, and what llama.cpp assumes about it.

Each family is written as llama.cpp's own converter writes it. What llama.cpp does not read from the file, such as the
pattern of Gemma's layers, is checked here: a model that differs is refused instead of converted wrongly.
Source: llama.cpp, conversion/*.py, src/llama-model.cpp.

R = rotated dimensions of a head / 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from gguf import MODEL_ARCH, MODEL_TENSOR, TENSOR_NAMES, GGUFWriter, RopeScalingType

from ...errors import ModelError

Settings = Mapping[str, Any]  # config.json as transformers understands it, ``PreTrainedConfig.to_dict()``


@dataclass(frozen=True)
class Family:
    """The rules for writing a family, and for refusing some of its models."""

    architecture: MODEL_ARCH  # llama.cpp's name for it
    write_settings: Callable[[GGUFWriter, Settings], None]  # writes its settings; ``write_common`` for most
    permutes_heads: bool = False  # whether rows of q and k are reordered; see ``interleave_heads``
    norm_offset: float = 0.0  # added to the weights of every norm (Gemma computes with 1 + weight)
    rope_types: tuple[str, ...] = ("default", "linear", "yarn")  # those that can be expressed
    # Computes tensors from the settings, with their names
    extra_tensors: Callable[[Settings], Iterator[tuple[str, torch.Tensor]]] = lambda settings: iter(())
    # Returns what llama.cpp would get wrong with these settings, or ``None``
    refusal: Callable[[Settings], str | None] = lambda settings: None


def family_of(settings: Settings, source: str) -> Family:
    """Return the family of a model; ``source`` is its name, for messages.

    A family that is not converted here, or a setting that llama.cpp cannot express, raises ``ModelError``.
    """
    otherwise = "use llama.cpp's own script for it: --converter PATH/TO/convert_hf_to_gguf.py"
    name = (settings.get("architectures") or ["no architecture"])[0]
    if name not in FAMILIES:
        known = ", ".join(known.removesuffix("ForCausalLM") for known in FAMILIES)
        raise ModelError(f"{source}: {name} is none of the families that are converted here ({known}); {otherwise}")
    if settings.get("quantization_config"):
        raise ModelError(f"{source}: its weights are quantised; expected 16- or 32-bit ones (export --to merged first)")
    family = FAMILIES[name]
    rope = rope_of(settings)
    refusal = family.refusal(settings)
    if rope.get("rope_type", "default") not in family.rope_types:
        refusal = f"its rope type is {rope['rope_type']!r}; {', '.join(family.rope_types)} can be expressed for it"
    if refusal:
        raise ModelError(f"{source}: llama.cpp's {name.removesuffix('ForCausalLM')} differs: {refusal}; {otherwise}")
    return family


def rope_of(settings: Settings) -> Settings:
    """Return the rotary settings of the layers with full attention."""
    rope: dict[str, Any] = settings.get("rope_parameters") or {}
    return rope.get("full_attention", rope)


# Name of a setting in a GGUF file -> its name in config.json.
NAMES = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "head_count": "num_attention_heads",
    "head_count_kv": "num_key_value_heads",
    "layer_norm_rms_eps": "rms_norm_eps",
    "key_length": "head_dim",
    "value_length": "head_dim",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "sliding_window": "sliding_window",
    "vocab_size": "vocab_size",
    "rope_scaling_orig_ctx_len": "original_max_position_embeddings",
}


def _copy(writer: GGUFWriter, settings: Settings, *names: str) -> None:
    """Write settings under these names, in this order."""
    for name in names:
        getattr(writer, f"add_{name}")(settings[NAMES[name]])


def write_common(writer: GGUFWriter, settings: Settings) -> None:
    """Write the settings that most families share."""
    _copy(writer, settings, "block_count", "context_length", "embedding_length", "feed_forward_length")
    _copy(writer, settings, "head_count", "head_count_kv")
    rope = rope_of(settings)
    _write_rope_scaling(writer, rope)
    writer.add_rope_freq_base(rope["rope_theta"])
    if theta := (settings["rope_parameters"].get("sliding_attention") or {}).get("rope_theta"):
        writer.add_rope_freq_base_swa(theta)
    _copy(writer, settings, "layer_norm_rms_eps")
    if settings.get("head_dim"):
        _copy(writer, settings, "key_length", "value_length")


def _write_rope_scaling(writer: GGUFWriter, rope: Settings) -> None:
    kind = rope.get("rope_type")
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(RopeScalingType.LINEAR if kind == "linear" else RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        _copy(writer, rope, "rope_scaling_orig_ctx_len")
        if rope.get("attention_factor") is not None:
            writer.add_rope_scaling_yarn_attn_factor(rope["attention_factor"])
        if rope.get("beta_fast") is not None:
            writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
        if rope.get("beta_slow") is not None:
            writer.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])


def _write_llama(writer: GGUFWriter, settings: Settings) -> None:
    write_common(writer, settings)
    _copy(writer, settings, "vocab_size")
    writer.add_rope_dimension_count(_head_dimensions(settings))


def _write_gemma2(writer: GGUFWriter, settings: Settings) -> None:
    _copy(writer, settings, "context_length", "embedding_length", "block_count", "feed_forward_length")
    _copy(writer, settings, "head_count", "head_count_kv", "layer_norm_rms_eps", "key_length", "value_length")
    _copy(writer, settings, "attn_logit_softcapping", "final_logit_softcapping", "sliding_window")


def _write_gemma3(writer: GGUFWriter, settings: Settings) -> None:
    write_common(writer, settings)
    if settings.get("final_logit_softcapping"):
        _copy(writer, settings, "final_logit_softcapping")
    _copy(writer, settings, "sliding_window")


def _write_phi3(writer: GGUFWriter, settings: Settings) -> None:
    rope = rope_of(settings)
    _copy(writer, settings, "context_length", "rope_scaling_orig_ctx_len", "embedding_length", "feed_forward_length")
    _copy(writer, settings, "block_count", "head_count", "head_count_kv", "layer_norm_rms_eps")
    writer.add_rope_dimension_count(_phi3_rotated_dimensions(settings))
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_sliding_window(settings.get("sliding_window") or 0)  # 0 distinguishes Phi-4 from Phi-3
    if rope.get("long_factor"):
        original = settings["original_max_position_embeddings"]
        scale = settings["max_position_embeddings"] / original
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0)


def _head_dimensions(settings: Settings) -> int:
    return settings.get("head_dim") or settings["hidden_size"] // settings["num_attention_heads"]


def _phi3_rotated_dimensions(settings: Settings) -> int:
    share = rope_of(settings).get("partial_rotary_factor", 1.0)
    return int(share * settings["hidden_size"]) // settings["num_attention_heads"]


def llama3_rope_factors(settings: Settings) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the divisors of Llama 3.1's rotary frequencies, float32 ``[R]``: the factor for long waves, 1 for short."""
    rope = rope_of(settings)
    if rope.get("rope_type") != "llama3":
        return
    dimensions = _head_dimensions(settings)
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


def _silu_refusal(settings: Settings) -> str | None:
    if settings["hidden_act"] != "silu":
        return f"it computes with silu, this model with {settings['hidden_act']}"
    return None


def _smollm3_refusal(settings: Settings) -> str | None:
    expected = [int((layer + 1) % 4 != 0) for layer in range(settings["num_hidden_layers"])]
    if list(settings["no_rope_layers"]) != expected:
        return "every fourth layer has no rotary embedding there"
    return _silu_refusal(settings)


def _gemma_refusal(settings: Settings, *, period: int, layers_of_27b: int) -> str | None:
    layers = settings["num_hidden_layers"]
    expected = ["sliding_attention" if (layer + 1) % period else "full_attention" for layer in range(layers)]
    if list(settings["layer_types"]) != expected:
        ordinal = {2: "second", 6: "sixth"}[period]
        return f"every {ordinal} layer sees everything there, the others a window"
    # llama.cpp recognises the 27B models by their number of layers, and scales their queries in another way.
    is_27b = layers == layers_of_27b
    scale = settings["hidden_size"] // settings["num_attention_heads"] if is_27b else settings["head_dim"]
    if settings["query_pre_attn_scalar"] != scale:
        return f"query_pre_attn_scalar is {scale} there, {settings['query_pre_attn_scalar']} here"
    if settings["hidden_activation"] != "gelu_pytorch_tanh":
        return f"it computes with gelu_pytorch_tanh, this model with {settings['hidden_activation']}"
    return None


def _gemma2_refusal(settings: Settings) -> str | None:
    if rope_of(settings).get("rope_theta") != 10000.0:
        return "its rope_theta is always 10000"
    if not settings["attn_logit_softcapping"] or not settings["final_logit_softcapping"]:
        return "it always caps attention scores and logits"
    return _gemma_refusal(settings, period=2, layers_of_27b=46)


def _gemma3_refusal(settings: Settings) -> str | None:
    if settings.get("attn_logit_softcapping"):
        return "it does not cap attention scores"
    if settings.get("use_bidirectional_attention"):
        return "it attends backwards only"
    if settings["rope_parameters"]["sliding_attention"].get("rope_type", "default") != "default":
        return "layers with a window have no rope scaling there"
    return _gemma_refusal(settings, period=6, layers_of_27b=62)


def _phi3_refusal(settings: Settings) -> str | None:
    rope = rope_of(settings)
    if rope.get("long_factor") and len(rope["long_factor"]) != _phi3_rotated_dimensions(settings) // 2:
        return f"it expects {_phi3_rotated_dimensions(settings) // 2} factors of LongRoPE"
    return _silu_refusal(settings)


_LLAMA = Family(
    MODEL_ARCH.LLAMA,
    _write_llama,
    permutes_heads=True,
    rope_types=("default", "linear", "yarn", "llama3"),
    extra_tensors=llama3_rope_factors,
    refusal=_silu_refusal,
)

# By the name of the class in transformers, the first of ``architectures`` in config.json.
FAMILIES = {
    "LlamaForCausalLM": _LLAMA,
    "MistralForCausalLM": _LLAMA,
    "Qwen2ForCausalLM": Family(MODEL_ARCH.QWEN2, write_common, refusal=_silu_refusal),
    "Qwen3ForCausalLM": Family(MODEL_ARCH.QWEN3, write_common, refusal=_silu_refusal),
    "Gemma2ForCausalLM": Family(
        MODEL_ARCH.GEMMA2, _write_gemma2, norm_offset=1.0, rope_types=("default",), refusal=_gemma2_refusal
    ),
    "Gemma3ForCausalLM": Family(
        MODEL_ARCH.GEMMA3, _write_gemma3, norm_offset=1.0, rope_types=("default", "linear"), refusal=_gemma3_refusal
    ),
    "Phi3ForCausalLM": Family(
        MODEL_ARCH.PHI3,
        _write_phi3,
        rope_types=("default", "longrope"),
        extra_tensors=phi3_rope_factors,
        refusal=_phi3_refusal,
    ),
    "SmolLM3ForCausalLM": replace(_LLAMA, architecture=MODEL_ARCH.SMOLLM3, refusal=_smollm3_refusal),
}
