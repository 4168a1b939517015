"""List the model families that can be converted, and what llama.cpp assumes about each.

What llama.cpp does not read from the file, such as the pattern of Gemma's layers, is checked here: a model that differs
is refused instead of converted wrongly. Source: llama.cpp, src/models/*.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from gguf import MODEL_ARCH, GGUFWriter

from ...errors import ModelError
from .parts import (
    Parts,
    as_stored,
    gpt_oss_parts,
    interleaved_heads,
    lfm2_parts,
    llama3_rope_factors,
    norms_from_one,
    phi3_rope_factors,
    qwen35_parts,
    split_experts,
)
from .settings import (
    Settings,
    full_attention_interval,
    is_windowed,
    phi3_rotated_dimensions,
    rope_of,
    write_cohere,
    write_common,
    write_experts,
    write_gemma2,
    write_gemma3,
    write_gpt_oss,
    write_granite,
    write_lfm2,
    write_llama,
    write_mistral3,
    write_phi3,
    write_qwen3_vl,
    write_qwen35,
    write_stablelm,
    write_windows,
)


@dataclass(frozen=True)
class Family:
    """The rules for writing a family, and for refusing some of its models."""

    architecture: MODEL_ARCH  # llama.cpp's name for it
    write_settings: Callable[[GGUFWriter, Settings], None]  # writes its settings; ``write_common`` for most
    parts: Parts = as_stored  # what becomes of each stored tensor
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
        known = ", ".join(dict.fromkeys(map(short_name, FAMILIES)))
        raise ModelError(f"{source}: {name} is none of the families that are converted here ({known}); {otherwise}")
    if settings.get("quantization_config"):
        raise ModelError(f"{source}: its weights are quantised; expected 16- or 32-bit ones (export --to merged first)")
    family = FAMILIES[name]
    rope = rope_of(settings)
    refusal = family.refusal(settings)
    if rope.get("rope_type", "default") not in family.rope_types:
        refusal = f"its rope type is {rope['rope_type']!r}; {', '.join(family.rope_types)} can be expressed for it"
    if refusal:
        raise ModelError(f"{source}: llama.cpp's {short_name(name)} differs: {refusal}; {otherwise}")
    return family


def short_name(architecture: str) -> str:
    """Return the name of a class in transformers without its end."""
    return architecture.removesuffix("ForCausalLM").removesuffix("ForConditionalGeneration")


_ORDINALS = {2: "second", 4: "fourth", 6: "sixth"}


def _activation_refusal(settings: Settings, *, expected: str = "silu") -> str | None:
    if settings["hidden_act"] != expected:
        return f"it computes with {expected}, this model with {settings['hidden_act']}"
    return None


def _smollm3_refusal(settings: Settings) -> str | None:
    expected = [int((layer + 1) % 4 != 0) for layer in range(settings["num_hidden_layers"])]
    if list(settings["no_rope_layers"]) != expected:
        return "every fourth layer has no rotary embedding there"
    return _activation_refusal(settings)


def _pattern_refusal(settings: Settings, *, period: int) -> str | None:
    """Refuse another order of layers than windows and, at the end of each period, a layer without one."""
    if is_windowed(settings) != [(layer + 1) % period != 0 for layer in range(settings["num_hidden_layers"])]:
        return f"every {_ORDINALS[period]} layer sees everything there, the others a window"
    return None


def _gemma_refusal(settings: Settings, *, period: int, layers_of_27b: int) -> str | None:
    if refusal := _pattern_refusal(settings, period=period):
        return refusal
    # llama.cpp recognises the 27B models by their number of layers, and scales their queries in another way.
    is_27b = settings["num_hidden_layers"] == layers_of_27b
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
    if rope.get("long_factor") and len(rope["long_factor"]) != phi3_rotated_dimensions(settings) // 2:
        return f"it expects {phi3_rotated_dimensions(settings) // 2} factors of LongRoPE"
    return _activation_refusal(settings)


def _mistral3_refusal(settings: Settings) -> str | None:
    kind = settings["model_type"]
    if kind not in ("mistral", "ministral3"):
        return f"its text part is Mistral or Ministral 3, here it is {kind}"
    if kind == "ministral3":
        rope = rope_of(settings)
        if rope.get("rope_type") != "yarn" or "llama_4_scaling_beta" not in rope or "mscale_all_dim" not in rope:
            return "it needs a rope of type yarn with mscale_all_dim and llama_4_scaling_beta"
    return _activation_refusal(settings)


def _olmo_refusal(settings: Settings) -> str | None:
    if settings.get("sliding_window") is not None and (refusal := _pattern_refusal(settings, period=4)):
        return refusal
    return _activation_refusal(settings)


def _experts_refusal(settings: Settings) -> str | None:
    """Refuse Qwen3-MoE with settings that llama.cpp's does not have."""
    if not settings.get("norm_topk_prob"):
        return "the weights of the chosen experts always add up to 1 there (norm_topk_prob)"
    return _all_experts_refusal(settings)


def _shared_experts_refusal(settings: Settings) -> str | None:
    if settings.get("norm_topk_prob"):
        return "the weights of the chosen experts are not scaled to add up to 1 there (norm_topk_prob)"
    return _all_experts_refusal(settings)


def _all_experts_refusal(settings: Settings) -> str | None:
    if settings.get("decoder_sparse_step", 1) != 1 or settings.get("mlp_only_layers"):
        return "every layer has experts there"
    return _activation_refusal(settings)


def _qwen35_refusal(settings: Settings) -> str | None:
    period = full_attention_interval(settings)
    layers = range(settings["num_hidden_layers"])
    expected = ["linear_attention" if (layer + 1) % period else "full_attention" for layer in layers]
    if list(settings["layer_types"]) != expected:
        return f"every {_ORDINALS.get(period, f'{period}th')} layer has full attention there, the others a linear one"
    if settings["linear_key_head_dim"] != settings["linear_value_head_dim"]:
        return "keys and values of linear attention are equally wide there"
    return _activation_refusal(settings)


def _gpt_oss_refusal(settings: Settings) -> str | None:
    return _pattern_refusal(settings, period=2) or _activation_refusal(settings)


def _stablelm_refusal(settings: Settings) -> str | None:
    if settings["qk_layernorm"]:
        return "queries and keys have no norms in the files made here (qk_layernorm)"
    return _activation_refusal(settings)


def _cohere_refusal(settings: Settings) -> str | None:
    if settings.get("use_qk_norm"):
        return "queries and keys have no norms in the files made here (use_qk_norm)"
    return _activation_refusal(settings)


def _cohere2_refusal(settings: Settings) -> str | None:
    return _pattern_refusal(settings, period=4) or _activation_refusal(settings)


_LLAMA = Family(
    MODEL_ARCH.LLAMA,
    write_llama,
    parts=interleaved_heads,
    rope_types=("default", "linear", "yarn", "llama3"),
    extra_tensors=llama3_rope_factors,
    refusal=_activation_refusal,
)
_MISTRAL3 = Family(MODEL_ARCH.MISTRAL3, write_mistral3, parts=interleaved_heads, refusal=_mistral3_refusal)
_QWEN35 = Family(MODEL_ARCH.QWEN35, write_qwen35, parts=qwen35_parts, rope_types=("default",), refusal=_qwen35_refusal)
_QWEN35_MOE = replace(_QWEN35, architecture=MODEL_ARCH.QWEN35MOE)
_GEMMA3 = Family(
    MODEL_ARCH.GEMMA3, write_gemma3, parts=norms_from_one, rope_types=("default", "linear"), refusal=_gemma3_refusal
)
_OLMO = Family(MODEL_ARCH.OLMO2, write_windows, refusal=_olmo_refusal)

# By the name of the class in transformers, the first of ``architectures`` in config.json. ``ForConditionalGeneration``
# is a vision-language model, of which the text part is converted.
FAMILIES = {
    "LlamaForCausalLM": _LLAMA,
    "MistralForCausalLM": _LLAMA,
    "MixtralForCausalLM": _LLAMA,
    "Ministral3ForCausalLM": _MISTRAL3,
    "Mistral3ForConditionalGeneration": _MISTRAL3,
    "Qwen2ForCausalLM": Family(MODEL_ARCH.QWEN2, write_common, refusal=_activation_refusal),
    "Qwen2MoeForCausalLM": Family(MODEL_ARCH.QWEN2MOE, write_experts, split_experts, refusal=_shared_experts_refusal),
    "Qwen2_5_VLForConditionalGeneration": Family(MODEL_ARCH.QWEN2VL, write_common, refusal=_activation_refusal),
    "Qwen3ForCausalLM": Family(MODEL_ARCH.QWEN3, write_common, refusal=_activation_refusal),
    "Qwen3MoeForCausalLM": Family(MODEL_ARCH.QWEN3MOE, write_experts, split_experts, refusal=_experts_refusal),
    "Qwen3VLForConditionalGeneration": Family(MODEL_ARCH.QWEN3VL, write_qwen3_vl, refusal=_activation_refusal),
    "Qwen3_5ForCausalLM": _QWEN35,
    "Qwen3_5ForConditionalGeneration": _QWEN35,
    "Qwen3_5MoeForCausalLM": _QWEN35_MOE,
    "Qwen3_5MoeForConditionalGeneration": _QWEN35_MOE,
    "Gemma2ForCausalLM": Family(
        MODEL_ARCH.GEMMA2, write_gemma2, norms_from_one, rope_types=("default",), refusal=_gemma2_refusal
    ),
    "Gemma3ForCausalLM": _GEMMA3,
    "Gemma3ForConditionalGeneration": _GEMMA3,
    "Phi3ForCausalLM": Family(
        MODEL_ARCH.PHI3,
        write_phi3,
        rope_types=("default", "longrope"),
        extra_tensors=phi3_rope_factors,
        refusal=_phi3_refusal,
    ),
    "SmolLM3ForCausalLM": replace(_LLAMA, architecture=MODEL_ARCH.SMOLLM3, refusal=_smollm3_refusal),
    "GraniteForCausalLM": replace(_LLAMA, architecture=MODEL_ARCH.GRANITE, write_settings=write_granite),
    "Olmo2ForCausalLM": _OLMO,
    "Olmo3ForCausalLM": _OLMO,
    "ArceeForCausalLM": replace(
        _LLAMA, architecture=MODEL_ARCH.ARCEE, refusal=partial(_activation_refusal, expected="relu2")
    ),
    "SeedOssForCausalLM": Family(MODEL_ARCH.SEED_OSS, write_common, refusal=_activation_refusal),
    "HunYuanDenseV1ForCausalLM": Family(
        MODEL_ARCH.HUNYUAN_DENSE, write_common, rope_types=("default",), refusal=_activation_refusal
    ),
    "Ernie4_5ForCausalLM": Family(
        MODEL_ARCH.ERNIE4_5, write_common, rope_types=("default",), refusal=_activation_refusal
    ),
    "CohereForCausalLM": Family(MODEL_ARCH.COMMAND_R, write_cohere, rope_types=("default",), refusal=_cohere_refusal),
    "Cohere2ForCausalLM": Family(MODEL_ARCH.COHERE2, write_cohere, rope_types=("default",), refusal=_cohere2_refusal),
    "Starcoder2ForCausalLM": Family(
        MODEL_ARCH.STARCODER2,
        write_common,
        rope_types=("default",),
        refusal=partial(_activation_refusal, expected="gelu_pytorch_tanh"),
    ),
    "StableLmForCausalLM": Family(
        MODEL_ARCH.STABLELM, write_stablelm, rope_types=("default",), refusal=_stablelm_refusal
    ),
    "GptOssForCausalLM": Family(
        MODEL_ARCH.GPT_OSS, write_gpt_oss, gpt_oss_parts, rope_types=("default", "yarn"), refusal=_gpt_oss_refusal
    ),
    "Lfm2ForCausalLM": Family(MODEL_ARCH.LFM2, write_lfm2, lfm2_parts, rope_types=("default",)),
}
