"""What works with which architecture: one tiny model of each is trained, merged and looked up.

The rows of docs/models.md are made here, and are what the product is compared with.
"""

from __future__ import annotations

import re
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoConfig,
    PreTrainedConfig,
)

from oddsmith.errors import OddsmithError
from oddsmith.export.gguf.families import FAMILIES
from oddsmith.export.merge import merge_adapter
from oddsmith.model.loading.models import load_model, load_tokenizer
from tests.equivalence.test_forest import EXPERTS, LATENT
from tests.equivalence.test_self_check import DELTA_RULE, MAMBA
from tests.llama_cpp_oracle import llama_cpp_source
from tests.tiny import SMALL, tiny_tokenizer
from tests.tiny_multimodal import multimodal_config
from tests.tiny_runs import make_trainer, train_run

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
HEAD = "| model | class in transformers | batches | why padded | LoRA | all weights | merge | GGUF |"

WINDOWS = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
OLD = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
IMAGES = {"parts": True}  # a model of several parts, each made small by tests.tiny_multimodal
GEMMA4 = {
    "layer_types": ["sliding_attention", "full_attention"], "global_head_dim": 8, "num_kv_shared_layers": 0,
    "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 264,
}  # fmt: skip
GEMMA3N = WINDOWS | {
    "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 264, "laurel_rank": 8,
    "activation_sparsity_pattern": [0.0, 0.0], "intermediate_size": [48, 48],
}  # fmt: skip
# Name -> (model type in transformers, settings beside those that make it small).
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama 1 to 3": ("llama", {}),
    "Llama 4 (text)": ("llama4_text", EXPERTS | {"attention_chunk_size": 64, "intermediate_size_mlp": 48}),
    "Mistral": ("mistral", {"sliding_window": 5}),
    "Ministral (8B)": ("ministral", WINDOWS),
    "Ministral 3 (text)": ("ministral3", {}),
    "Mistral 3": ("mistral3", IMAGES),
    "Mixtral": ("mixtral", EXPERTS),
    "Qwen2, Qwen2.5": ("qwen2", {}),
    "Qwen2-MoE": ("qwen2_moe", EXPERTS | {"shared_expert_intermediate_size": 16}),
    "Qwen2.5-VL": ("qwen2_5_vl", IMAGES),
    "Qwen3": ("qwen3", {}),
    "Qwen3-MoE": ("qwen3_moe", EXPERTS),
    "Qwen3-VL": ("qwen3_vl", IMAGES),
    "Qwen3-Next": ("qwen3_next", EXPERTS | DELTA_RULE | {"decoder_sparse_step": 1}),
    "Qwen3.5 (text)": ("qwen3_5_text", DELTA_RULE),
    "Qwen3.5-MoE (text)": ("qwen3_5_moe_text", EXPERTS | DELTA_RULE),
    "Gemma": ("gemma", {}),
    "Gemma 2": ("gemma2", WINDOWS),
    "Gemma 3 (text)": ("gemma3_text", WINDOWS),
    "Gemma 3": ("gemma3", IMAGES),
    "Gemma 3n (text)": ("gemma3n_text", GEMMA3N),
    "Gemma 4 (text)": ("gemma4_text", GEMMA4),
    "Phi-1, Phi-2": ("phi", {}),
    "Phi-3, Phi-4": ("phi3", {"sliding_window": 6}),
    "Phi-3.5-MoE": ("phimoe", EXPERTS),
    "SmolLM3": ("smollm3", {}),
    "SmolVLM": ("smolvlm", IMAGES),
    "OLMo": ("olmo", {}),
    "OLMo 2": ("olmo2", {}),
    "OLMo 3": ("olmo3", WINDOWS),
    "OLMoE": ("olmoe", EXPERTS),
    "OLMo hybrid": ("olmo_hybrid", DELTA_RULE),
    "Granite": ("granite", {"logits_scaling": 2.0, "residual_multiplier": 0.5}),
    "Granite-MoE": ("granitemoe", EXPERTS),
    "Granite with windows": ("granite_swa", WINDOWS),
    "Granite 4 (hybrid)": ("granitemoehybrid", MAMBA | EXPERTS | {"layer_types": ["mamba", "attention"]}),
    "Falcon": ("falcon", {"head_dim": None}),
    "Falcon-H1": ("falcon_h1", MAMBA | {"mamba_d_ssm": 64}),
    "Falcon-Mamba": ("falcon_mamba", {"state_size": 8}),
    "LFM2": ("lfm2", {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8}),
    "LFM2-MoE": ("lfm2_moe", EXPERTS | {"layer_types": ["conv", "full_attention"]}),
    "LFM2-VL": ("lfm2_vl", IMAGES | {"layer_types": ["conv", "full_attention"]}),
    "DeepSeek V2": ("deepseek_v2", EXPERTS | LATENT),
    "DeepSeek V3": ("deepseek_v3", EXPERTS | LATENT),
    "GLM 4 (9B, 2024)": ("glm", {}),
    "GLM 4 (0414)": ("glm4", {}),
    "GLM 4.5": ("glm4_moe", EXPERTS | LATENT),
    "gpt-oss": ("gpt_oss", EXPERTS | {"sliding_window": 4}),
    "Command R": ("cohere", {"logit_scale": 0.5}),
    "Command R7B": ("cohere2", {"logit_scale": 0.5, "sliding_window": 4}),
    "StarCoder2": ("starcoder2", {"sliding_window": 6}),
    "StableLM": ("stablelm", {}),
    "GPT-2": ("gpt2", OLD),
    "GPT-NeoX, Pythia": ("gpt_neox", {"rotary_pct": 0.5}),
    "GPT-J": ("gptj", OLD | {"rotary_dim": 4}),
    "OPT": ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "BLOOM": ("bloom", {"n_layer": 2, "n_head": 4}),
    "MPT": ("mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 256}),
    "Nemotron, Minitron": ("nemotron", {}),
    "Nemotron-H": ("nemotron_h", MAMBA | EXPERTS),
    "EXAONE 4": ("exaone4", WINDOWS),
    "ERNIE 4.5": ("ernie4_5", {}),
    "ERNIE 4.5 MoE": ("ernie4_5_moe", EXPERTS | {"moe_num_experts": 4, "moe_k": 2}),
    "Hunyuan": ("hunyuan_v1_dense", {}),
    "Hunyuan-MoE": ("hunyuan_v1_moe", EXPERTS | {"moe_topk": [2, 2]}),
    "Seed-OSS": ("seed_oss", {}),
    "MiniMax": ("minimax", EXPERTS | {"layer_types": ["linear_attention", "full_attention"]}),
    "MiniMax M2": ("minimax_m2", EXPERTS),
    "Apertus": ("apertus", {}),
    "Arcee": ("arcee", {}),
    "dots.llm1": ("dots1", EXPERTS | LATENT | {"n_shared_experts": 1}),
    "Helium": ("helium", {}),
    "nanochat": ("nanochat", {}),
    "Bamba": ("bamba", MAMBA | {"attn_layer_indices": [1]}),
    "Jamba": ("jamba", EXPERTS | {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8}),
    "Zamba2": ("zamba2", {"layers_block_type": ["mamba", "hybrid"]}),
    "RecurrentGemma": ("recurrent_gemma", {"lru_width": 32, "block_types": ["recurrent", "attention"]}),
    "Mamba": ("mamba", {"state_size": 8}),
    "Mamba 2": ("mamba2", {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 16}),
    "RWKV 4": ("rwkv", {"attention_hidden_size": 32}),
    "LLaVA": ("llava", IMAGES),
    "InternVL": ("internvl", IMAGES),
    "Idefics 3": ("idefics3", IMAGES),
    "T5, FLAN-T5": ("t5", {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
                           "decoder_start_token_id": 0}),
    "BART": ("bart", {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48,
                      "decoder_ffn_dim": 48, "encoder_attention_heads": 4, "decoder_attention_heads": 4}),
    "BERT": ("bert", {}),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """What was found for an architecture, as in the table."""

    model: str
    of: str  # class in transformers
    batches: str  # "packed, prompt shared", "packed", "padded" or "refused"
    why: str  # it is padded or refused
    lora: str
    full: str
    merge: str
    gguf: str  # "yes", "script" (llama.cpp's own) or "no"

    def __str__(self) -> str:
        return f"| {' | '.join(astuple(self))} |".replace("|  |", "| |")


def config_of(name: str) -> PreTrainedConfig:
    """Return a small configuration of an architecture."""
    kind, settings = ARCHITECTURES[name]
    if "parts" in settings:
        config = multimodal_config(kind)
        config.get_text_config().update({key: value for key, value in settings.items() if key != "parts"})
    else:
        config = AutoConfig.for_model(
            kind, **{key: value for key, value in {**SMALL, **settings}.items() if value is not None}
        )
    for key, value in list(vars(config).items()):
        if isinstance(value, float) and "drop" in key:
            setattr(config, key, 0.0)
    return config


def class_of(config: PreTrainedConfig) -> type:
    """Return the class in transformers that checkpoints of this kind name."""
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not config.is_encoder_decoder:
        return MODEL_FOR_MASKED_LM_MAPPING[type(config)]
    mappings = (
        (MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,) if config.is_encoder_decoder else (MODEL_FOR_CAUSAL_LM_MAPPING,)
    )
    for mapping in (*mappings, MODEL_FOR_MULTIMODAL_LM_MAPPING):
        if type(config) in mapping:
            return mapping[type(config)]
    raise LookupError(config.model_type)


def save_tiny(name: str, base: Path) -> Path:
    """Write a folder with a tiny model of an architecture."""
    config = config_of(name)
    torch.manual_seed(0)
    class_of(config)._from_config(config).save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    return base


def row_of(name: str, scratch: Path) -> Row:
    """Train, merge and look up a tiny model of an architecture."""
    base, kind = save_tiny(name, scratch / "base"), class_of(config_of(name)).__name__
    batches, why = batches_of(base, scratch / "batches")
    if batches == "refused":
        return Row(name, f"`{kind}`", batches, why, "no", "no", "no", "no")
    lora = _works(lambda: train_run(base, scratch / "lora", {}))
    full = _works(lambda: train_run(base, scratch / "full"))
    merge = "no"
    if lora == "yes":
        merge = _works(lambda: merge_adapter(str(scratch / "lora"), scratch / "merged", dtype="float32"))
    return Row(name, f"`{kind}`", batches, why, lora, full, merge, gguf_of(kind))


def batches_of(base: Path, scratch: Path) -> tuple[str, str]:
    """Return how a model is trained, and why it is padded or refused."""
    try:
        model = load_model(str(base))
    except OddsmithError as error:
        return "refused", _cell(str(error).removeprefix(f"{base}: "))
    path = make_trainer(scratch, model, tokenizer=load_tokenizer(str(base))).path
    if path.name != "prefix forest":
        return "padded", _cell(path.reason)
    # A pair of 64 tokens of prompt and 4 in each answer: 72 in a row where the prompt is computed once. Some layers
    # share no short ones.
    ids = {"chosen": list(range(68)), "rejected": [*range(64), 70, 71, 72, 73]}
    row: dict[str, Any] = {f"{side}_input_ids": ids[side] for side in ids}
    row |= {f"{side}_{end}": count for side in ids for end, count in (("prompt_tokens", 64), ("end", 68))}
    return ("packed, prompt shared" if path.measure(row).tokens == 72 else "packed"), ""


def gguf_of(kind: str) -> str:
    """Return whether a class is converted to GGUF: here, by llama.cpp's own script, or not at all."""
    if kind in FAMILIES:
        return "yes"
    sources = (llama_cpp_source() / "conversion").glob("*.py")
    known = {name for source in sources for name in re.findall(r'"(\w+)"', source.read_text(encoding="utf-8"))}
    return "script" if kind in known else "no"


def _works(act: Any) -> str:
    try:
        act()
    except OddsmithError as error:
        return f"no: {_cell(str(error))}"
    return "yes"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def rows_of_page() -> dict[str, str]:
    """Return the rows of docs/models.md by the name of the model."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    rows = lines[lines.index(HEAD) + 2 :]
    return {row.split(" | ")[0].removeprefix("| "): row for row in rows}
