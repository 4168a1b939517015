"""Write a model's settings into the header of a GGUF file, family by family.

Each family is written as llama.cpp's own converter writes it. Source: llama.cpp, conversion/*.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gguf import GGUFWriter, RopeScalingType
from transformers import PreTrainedConfig

Settings = Mapping[str, Any]  # config.json as transformers understands it; see ``text_settings``

# Name of a setting in a GGUF file -> its name in config.json; of several, the first that is set.
NAMES = {
    "block_count": ("num_hidden_layers",),
    "context_length": ("max_position_embeddings",),
    "embedding_length": ("hidden_size",),
    "feed_forward_length": ("intermediate_size",),
    "head_count": ("num_attention_heads",),
    "head_count_kv": ("num_key_value_heads",),
    "layer_norm_rms_eps": ("rms_norm_eps",),
    "layer_norm_eps": ("layer_norm_eps", "norm_epsilon"),
    "key_length": ("head_dim",),
    "value_length": ("head_dim",),
    "expert_count": ("num_local_experts", "num_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "sliding_window": ("sliding_window",),
    "vocab_size": ("vocab_size",),
    "rope_scaling_orig_ctx_len": ("original_max_position_embeddings",),
    "rope_scaling_yarn_attn_factor": ("attention_factor",),
    "rope_scaling_yarn_beta_fast": ("beta_fast",),
    "rope_scaling_yarn_beta_slow": ("beta_slow",),
    "rope_scaling_yarn_log_mul": ("mscale_all_dim",),
    "attn_temperature_scale": ("llama_4_scaling_beta",),
    "attention_scale": ("attention_multiplier",),
    "embedding_scale": ("embedding_multiplier",),
    "residual_scale": ("residual_multiplier",),
    "logit_scale": ("logits_scaling", "logit_scale"),
    "ssm_conv_kernel": ("linear_conv_kernel_dim",),
    "ssm_state_size": ("linear_key_head_dim",),
    "ssm_group_count": ("linear_num_key_heads",),
    "ssm_time_step_rank": ("linear_num_value_heads",),
    "shortconv_l_cache": ("conv_L_cache",),
}
COMMON = (
    "block_count", "context_length", "embedding_length", "feed_forward_length", "head_count", "head_count_kv",
    "layer_norm_rms_eps", "layer_norm_eps", "expert_count", "expert_used_count", "key_length", "value_length",
)  # fmt: skip
QWEN35_ROPE_SECTIONS = [11, 11, 10, 0]  # where a checkpoint does not say it
LINEAR_ATTENTION = ("ssm_conv_kernel", "ssm_state_size", "ssm_group_count", "ssm_time_step_rank")


def text_settings(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the settings of a model's text part under its own names, with those of the whole model beside them."""
    whole = config.to_dict()
    own = {name: whole.get(name) for name in ("architectures", "quantization_config", "tie_word_embeddings")}
    return {**whole, **config.get_text_config(decoder=True).to_dict(), **own}


def rope_of(settings: Settings) -> Settings:
    """Return the rotary settings of the layers with full attention."""
    rope: dict[str, Any] = settings.get("rope_parameters") or {}
    return rope.get("full_attention", rope)


def head_dimensions(settings: Settings) -> int:
    """Return the width of an attention head."""
    return settings.get("head_dim") or settings["hidden_size"] // settings["num_attention_heads"]


def phi3_rotated_dimensions(settings: Settings) -> int:
    """Return how many dimensions of a head Phi-3 rotates."""
    share = rope_of(settings).get("partial_rotary_factor", 1.0)
    return int(share * settings["hidden_size"]) // settings["num_attention_heads"]


def is_windowed(settings: Settings) -> list[bool]:
    """Return for each layer whether its attention has a window."""
    return [kind == "sliding_attention" for kind in settings["layer_types"]]


def _copy(writer: GGUFWriter, settings: Settings, *names: str) -> None:
    """Write settings under these names, in this order, those that are set."""
    for name in names:
        value = next((settings[key] for key in NAMES[name] if settings.get(key) is not None), None)
        if value is not None:
            getattr(writer, f"add_{name}")(value)


def write_common(writer: GGUFWriter, settings: Settings) -> None:
    """Write the settings that most families share."""
    _copy(writer, settings, *COMMON)
    rope = rope_of(settings)
    _write_rope_scaling(writer, rope)
    if rope.get("rope_theta") is not None:
        writer.add_rope_freq_base(rope["rope_theta"])
    parameters = settings.get("rope_parameters") or {}
    if theta := (parameters.get("sliding_attention") or {}).get("rope_theta"):
        writer.add_rope_freq_base_swa(theta)
    if sections := parameters.get("mrope_section"):
        writer.add_rope_dimension_sections([*sections, 0, 0, 0, 0][:4])


def _write_rope_scaling(writer: GGUFWriter, rope: Settings) -> None:
    kind = rope.get("rope_type")
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(RopeScalingType.LINEAR if kind == "linear" else RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        _copy(writer, rope, "rope_scaling_orig_ctx_len", "rope_scaling_yarn_attn_factor")
        _copy(writer, rope, "rope_scaling_yarn_beta_fast", "rope_scaling_yarn_beta_slow")


def write_llama(writer: GGUFWriter, settings: Settings) -> None:
    """Write Llama's settings, and those of families that descend from it."""
    write_common(writer, settings)
    _copy(writer, settings, "vocab_size")
    writer.add_rope_dimension_count(head_dimensions(settings))


def write_mistral3(writer: GGUFWriter, settings: Settings) -> None:
    """Write the settings of Mistral 3, and of Ministral 3, whose attention cools down with the position."""
    write_llama(writer, settings)
    if settings["model_type"] == "ministral3":
        _copy(writer, rope_of(settings), "rope_scaling_yarn_log_mul", "attn_temperature_scale")


def write_granite(writer: GGUFWriter, settings: Settings) -> None:
    """Write Granite's settings: Llama's and four factors."""
    write_llama(writer, {**settings, "head_dim": None})
    _copy(writer, settings, "attention_scale", "embedding_scale", "residual_scale", "logit_scale")


def write_windows(writer: GGUFWriter, settings: Settings) -> None:
    """Write the common settings and which layers have a window, if any has one (OLMo 2 and 3)."""
    write_common(writer, settings)
    if settings.get("sliding_window") is not None:
        _copy(writer, settings, "sliding_window")
        writer.add_sliding_window_pattern(is_windowed(settings))


def write_experts(writer: GGUFWriter, settings: Settings) -> None:
    """Write the common settings and the widths of experts (Qwen2-MoE, Qwen3-MoE)."""
    write_common(writer, settings)
    _copy(writer, settings, "expert_feed_forward_length", "expert_shared_feed_forward_length")


def write_qwen35(writer: GGUFWriter, settings: Settings) -> None:
    """Write the settings of Qwen3.5, with or without experts: linear attention but in every n-th layer."""
    write_experts(writer, settings)
    rope = rope_of(settings)
    if "mrope_section" not in rope:
        writer.add_rope_dimension_sections(QWEN35_ROPE_SECTIONS)
    _copy(writer, settings, *LINEAR_ATTENTION)
    writer.add_ssm_inner_size(settings["linear_value_head_dim"] * settings["linear_num_value_heads"])
    writer.add_full_attention_interval(full_attention_interval(settings))
    writer.add_rope_dimension_count(int(head_dimensions(settings) * rope.get("partial_rotary_factor", 0.25)))


def full_attention_interval(settings: Settings) -> int:
    """Return every how many layers one of Qwen3.5 has full attention."""
    return settings.get("full_attention_interval") or 4


def write_qwen3_vl(writer: GGUFWriter, settings: Settings) -> None:
    """Write the settings of Qwen3-VL's text part; images enter at several layers."""
    write_experts(writer, settings)
    writer.add_num_deepstack_layers(len(settings["vision_config"].get("deepstack_visual_indexes") or []))


def write_gpt_oss(writer: GGUFWriter, settings: Settings) -> None:
    """Write the settings of gpt-oss."""
    write_common(writer, settings)
    _copy(writer, settings, "sliding_window")
    writer.add_expert_feed_forward_length(settings["intermediate_size"])


def write_cohere(writer: GGUFWriter, settings: Settings) -> None:
    """Write the settings of Command R, and of Command R7B with its windows."""
    write_common(writer, settings)
    _copy(writer, settings, "logit_scale")
    writer.add_rope_scaling_type(RopeScalingType.NONE)
    if settings["model_type"] == "cohere2":
        _copy(writer, settings, "sliding_window", "vocab_size")
        width = settings["hidden_size"] // settings["num_attention_heads"]
        writer.add_rope_dimension_count(int(settings.get("rotary_pct", 1.0) * width))


def write_stablelm(writer: GGUFWriter, settings: Settings) -> None:
    """Write the settings of StableLM."""
    _copy(writer, settings, *COMMON[:6], "layer_norm_eps")
    share = rope_of(settings)["partial_rotary_factor"]
    writer.add_rope_dimension_count(int(share * (settings["hidden_size"] // settings["num_attention_heads"])))
    writer.add_parallel_residual(settings["use_parallel_residual"])


def write_lfm2(writer: GGUFWriter, settings: Settings) -> None:
    """Write the settings of LFM2: layers with a convolution have no keys."""
    kv_heads = [settings["num_key_value_heads"] if kind != "conv" else 0 for kind in settings["layer_types"]]
    width = lfm2_feed_forward(settings)
    eps = settings["norm_eps"]
    write_common(writer, {**settings, "num_key_value_heads": kv_heads, "intermediate_size": width, "rms_norm_eps": eps})
    _copy(writer, settings, "vocab_size", "shortconv_l_cache")


def lfm2_feed_forward(settings: Settings) -> int:
    """Return the width of LFM2's feed-forward layers, which its settings leave to be computed."""
    width = settings["intermediate_size"]
    if not settings["block_auto_adjust_ff_dim"]:
        return width
    width = int(2 * width / 3)
    if settings["block_ffn_dim_multiplier"] is not None:
        width = int(settings["block_ffn_dim_multiplier"] * width)
    multiple = settings["block_multiple_of"]
    return multiple * ((width + multiple - 1) // multiple)


def write_gemma2(writer: GGUFWriter, settings: Settings) -> None:
    """Write the settings of Gemma 2; llama.cpp knows its rotation."""
    _copy(writer, settings, "context_length", "embedding_length", "block_count", "feed_forward_length")
    _copy(writer, settings, "head_count", "head_count_kv", "layer_norm_rms_eps", "key_length", "value_length")
    _copy(writer, settings, "attn_logit_softcapping", "final_logit_softcapping", "sliding_window")


def write_gemma3(writer: GGUFWriter, settings: Settings) -> None:
    """Write the settings of Gemma 3's text part."""
    write_common(writer, settings)
    _copy(writer, settings, "final_logit_softcapping", "sliding_window")


def write_phi3(writer: GGUFWriter, settings: Settings) -> None:
    """Write the settings of Phi-3 and Phi-4."""
    rope = rope_of(settings)
    _copy(writer, settings, "context_length", "rope_scaling_orig_ctx_len", "embedding_length", "feed_forward_length")
    _copy(writer, settings, "block_count", "head_count", "head_count_kv", "layer_norm_rms_eps")
    writer.add_rope_dimension_count(phi3_rotated_dimensions(settings))
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_sliding_window(settings.get("sliding_window") or 0)  # 0 distinguishes Phi-4 from Phi-3
    if rope.get("long_factor"):
        original = settings["original_max_position_embeddings"]
        scale = settings["max_position_embeddings"] / original
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0)
