"""A tiny random model of every class of transformers that writes text and may read images or sound."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForMultimodalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES

from tests.tiny import SMALL, tiny_tokenizer

LAYERS = 2
# What a setting is at most in any part of a configuration.
MOST: dict[str, int] = {
    **dict.fromkeys(("hidden_size", "d_model", "embed_dim", "encoder_hidden_size", "text_hidden_size"), 64),
    **dict.fromkeys(("out_hidden_size", "projection_dim"), 64),
    **dict.fromkeys(("intermediate_size", "intermediate_size_mlp", "mlp_dim", "ffn_dim"), 48),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "dense_intermediate_size"), 48),
    **dict.fromkeys(("num_heads", "num_attention_heads", "attention_heads", "n_head"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "encoder_layers", "decoder_layers", "depth"), LAYERS),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "v_head_dim"), 16),
    **dict.fromkeys(("head_dim", "q_lora_rank", "kv_lora_rank", "sliding_window"), 16),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("num_key_value_heads", "num_experts_per_tok", "moe_k", "n_group", "linear_num_key_heads"), 2),
    **dict.fromkeys(("topk_group", "first_k_dense_replace"), 1),
    "linear_num_value_heads": 4, "image_size": 32, "patch_size": 8, "attention_chunk_size": 64,
    "max_position_embeddings": 256, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 264,
}  # fmt: skip
VOCABULARY = SMALL["vocab_size"]
# What else a kind needs: settings of its text part, and of the whole.
TEXT: dict[str, dict[str, Any]] = {
    "cohere2_vision": {"logit_scale": 0.5},
    "granite_docling": {"logits_scaling": 2.0},
    "hyperclovax_vision_v2": {"logits_scaling": 2.0},
    "lfm2_vl": {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
    "mllama": {"num_hidden_layers": 3, "cross_attention_layers": [1]},
}
WHOLE: dict[str, dict[str, Any]] = {
    "qwen2_5_omni_thinker": {"vision_start_token_id": 250},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 250},
}
MROPE = (
    "qwen2_vl_text", "qwen2_5_vl_text", "qwen2_5_omni_text", "glm4v_text", "glm4v_moe_text", "glm_ocr_text",
    "paddleocr_vl_text",
)  # fmt: skip
KINDS = sorted(MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES)


def multimodal_config(kind: str) -> PreTrainedConfig:
    """Return a small configuration of a model type."""
    config = AutoConfig.for_model(kind)
    for part in _parts(config):
        _shrink(part)
    for name, value in TEXT.get(kind, {}).items():
        setattr(config.get_text_config(), name, value)
    for name, value in WHOLE.get(kind, {}).items():
        setattr(config, name, value)
    return config


def multimodal_model(kind: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Return a model of random weights, none of them 0."""
    torch.manual_seed(0)
    model = AutoModelForMultimodalLM.from_config(multimodal_config(kind))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, parameter.shape[-1] ** -0.5)
        else:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.to(dtype)


def save_multimodal(folder: Path, kind: str, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Write the model, a tokenizer, and a file of an image processor."""
    model = multimodal_model(kind, dtype)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"do_resize":   true}', encoding="utf-8")
    return folder


def _parts(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    yield config
    for value in vars(config).values():
        if isinstance(value, PreTrainedConfig):
            yield from _parts(value)


def _shrink(part: PreTrainedConfig) -> None:
    settings = dict(vars(part))
    layers = next((settings[name] for name in ("num_hidden_layers", "num_layers", "depth") if settings.get(name)), 0)
    for name, value in settings.items():
        if not isinstance(value, bool | None):
            setattr(part, name, _small(name, value, layers))
    rope = getattr(part, "rope_parameters", None) or {}
    if "mrope_section" in rope or part.model_type in MROPE:
        width = getattr(part, "head_dim", None) or part.hidden_size // part.num_attention_heads
        half = int(width * rope.get("partial_rotary_factor", 1.0)) // 2
        rope["mrope_section"] = [half - 2 * (half // 3), half // 3, half // 3]


def _small(name: str, value: Any, layers: int) -> Any:
    """Return a setting of a small configuration; ``layers`` is how many layers the part had."""
    if name == "vocab_size":
        return VOCABULARY
    if name in MOST and isinstance(value, int):
        return min(value, MOST[name])
    if name in MOST and isinstance(value, list):
        return [min(one, MOST[name]) for one in value]
    if name.endswith(("token_id", "token_index")) and isinstance(value, int) and value >= VOCABULARY:
        return VOCABULARY - 1 - sum(map(ord, name)) % 5  # no token of the tokenizer
    if name.endswith("token_id") and isinstance(value, list):
        return [VOCABULARY - 1]
    if isinstance(value, list | tuple) and len(value) == layers > LAYERS:  # one of each kind
        return [value[0], next((one for one in value if one != value[0]), value[1])]
    return 0.0 if "dropout" in name and isinstance(value, float) else value
