"""A tiny random model of every family that is converted to GGUF, with tokenizers of both kinds."""

import json
from pathlib import Path

import sentencepiece
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from oddsmith.model.loading.gguf import byte_level_pre_tokenizer
from tests.tiny import CHATML, WORDS

ROWS = 384  # of the embedding, more than either tokenizer has tokens
SPECIAL = ("<|im_start|>", "<|im_end|>")
SIZES = {
    "vocab_size": ROWS, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.2, "bos_token_id": None,
    "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 128}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0 + i / 10 for i in range(8)],
    "long_factor": [2.0 + i for i in range(8)],
}
GEMMA3_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
}
OLMO3_ROPE = {"sliding_attention": {"rope_type": "default", "rope_theta": 1e6}, "full_attention": YARN_ROPE}
# Attention that cools down with the position, from token 16 on.
MINISTRAL3_ROPE = YARN_ROPE | {
    "original_max_position_embeddings": 16, "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0,
    "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
}  # fmt: skip
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 256}
GEMMA3 = {**GEMMA, "num_hidden_layers": 7, "rope_parameters": GEMMA3_ROPE}
GRANITE = {
    "attention_multiplier": 0.2, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0
}  # fmt: skip
WINDOWS = {"num_hidden_layers": 4, "sliding_window": 8}
EXPERTS = {
    "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "decoder_sparse_step": 1,
}  # fmt: skip
SHARED_EXPERT = EXPERTS | {"shared_expert_intermediate_size": 48}
DELTA_RULE = {
    "layer_types": ["linear_attention", "full_attention"], "full_attention_interval": 2, "head_dim": 32,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 32, "linear_value_head_dim": 32,
}  # fmt: skip
MROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [3, 3, 2]}  # for text, the same as without
# A vision tower that is small; names of settings differ.
VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "depth": 1,
    "num_heads": 2, "out_hidden_size": 64, "image_size": 28, "patch_size": 14, "deepstack_visual_indexes": [0],
    "fullatt_block_indexes": [0],
}  # fmt: skip


def _config(kind: str, **settings: object) -> PreTrainedConfig:
    return AutoConfig.for_model(kind, **{**SIZES, **settings})


def _with_images(kind: str, text: PreTrainedConfig, vision: str | None = None) -> PreTrainedConfig:
    """A vision-language model with this text part; ``vision`` is the type of its vision tower where it needs one."""
    tower = VISION | ({"model_type": vision} if vision else {})
    return AutoConfig.for_model(kind, text_config=text.to_dict(), vision_config=tower, tie_word_embeddings=False)


QWEN35 = _config("qwen3_5_text", **DELTA_RULE)
# Name -> (settings, kind of tokenizer). Heads are 16 wide, but where stated.
FAMILIES: dict[str, tuple[PreTrainedConfig, str]] = {
    "llama": (_config("llama", attention_bias=True, mlp_bias=True), "bytes"),
    "llama-tied": (_config("llama", tie_word_embeddings=True, head_dim=32), "bytes"),
    "llama3.1": (_config("llama", rope_parameters=LLAMA3_ROPE), "bytes"),
    "llama2": (_config("llama", rope_parameters=LINEAR_ROPE), "pieces"),
    "mistral": (_config("mistral", head_dim=16), "pieces"),
    "mixtral": (_config("mixtral", **EXPERTS), "pieces"),
    "ministral3": (_config("ministral3", head_dim=16, rope_parameters=MINISTRAL3_ROPE), "bytes"),
    "mistral3-images": (_with_images("mistral3", _config("mistral", head_dim=32), "pixtral"), "bytes"),
    "ministral3-images": (
        _with_images("mistral3", _config("ministral3", head_dim=16, rope_parameters=MINISTRAL3_ROPE), "pixtral"),
        "bytes",
    ),
    "qwen2": (_config("qwen2", rope_parameters=YARN_ROPE), "bytes"),
    "qwen2-experts": (_config("qwen2_moe", **SHARED_EXPERT), "bytes"),
    "qwen2.5-images": (_with_images("qwen2_5_vl", _config("qwen2_5_vl_text", rope_parameters=MROPE)), "bytes"),
    "qwen3": (_config("qwen3", head_dim=32), "bytes"),
    "qwen3-experts": (_config("qwen3_moe", **EXPERTS, head_dim=32, norm_topk_prob=True), "bytes"),
    "qwen3-images": (_with_images("qwen3_vl", _config("qwen3_vl_text", head_dim=16, rope_parameters=MROPE)), "bytes"),
    "qwen3.5": (QWEN35, "bytes"),
    "qwen3.5-images": (_with_images("qwen3_5", QWEN35), "bytes"),
    "qwen3.5-experts": (_config("qwen3_5_moe_text", **DELTA_RULE, **SHARED_EXPERT), "bytes"),
    "qwen3.5-experts-images": (
        _with_images("qwen3_5_moe", _config("qwen3_5_moe_text", **DELTA_RULE, **SHARED_EXPERT)),
        "bytes",
    ),
    "gemma2": (_config("gemma2", **GEMMA), "pieces"),
    "gemma3": (_config("gemma3_text", **GEMMA3), "pieces"),
    "gemma3-images": (_with_images("gemma3", _config("gemma3_text", **GEMMA3)), "pieces"),
    "phi3": (_config("phi3", sliding_window=256), "pieces"),
    "phi3-long": (_config("phi3", original_max_position_embeddings=256, rope_parameters=LONG_ROPE), "pieces"),
    "smollm3": (_config("smollm3", num_hidden_layers=4, tie_word_embeddings=True), "bytes"),
    "granite": (_config("granite", **GRANITE), "bytes"),
    "olmo2": (_config("olmo2"), "bytes"),
    "olmo3": (_config("olmo3", **WINDOWS, rope_parameters=OLMO3_ROPE), "bytes"),
    "arcee": (_config("arcee"), "bytes"),
    "seed-oss": (_config("seed_oss", head_dim=16), "bytes"),
    "hunyuan": (_config("hunyuan_v1_dense", head_dim=16, eod_token_id=None), "bytes"),
    "ernie4.5": (_config("ernie4_5", head_dim=16), "pieces"),
    "cohere": (_config("cohere", logit_scale=0.25), "bytes"),
    "cohere2": (_config("cohere2", **WINDOWS, logit_scale=0.25, head_dim=16, rotary_pct=1.0), "bytes"),
    "starcoder2": (_config("starcoder2"), "bytes"),
    "stablelm": (_config("stablelm"), "bytes"),
    "gpt-oss": (_config("gpt_oss", **EXPERTS, head_dim=16, sliding_window=8), "bytes"),
    "lfm2": (_config("lfm2", layer_types=["conv", "full_attention"], block_multiple_of=8), "bytes"),
}


def class_of(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class of a model, in ``architectures`` of its config.json."""
    mapping = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING if hasattr(config, "vision_config") else MODEL_FOR_CAUSAL_LM_MAPPING
    return mapping[type(config)]


# How byte-level tokenizers split text; for Qwen's models transformers assumes it.
PRE = {"llama3.1": "llama-bpe"} | {
    family: "qwen35" if family.startswith("qwen3.5") else "qwen2" for family in FAMILIES if family.startswith("qwen")
}


def save_family(folder: Path, family: str, *, dtype: torch.dtype = torch.bfloat16, **settings: object) -> Path:
    """Write a model folder of a family with random weights, norms and biases too; ``settings`` change its config."""
    config, kind = FAMILIES[family]
    config = type(config).from_dict({**config.to_dict(), **settings})
    torch.manual_seed(0)
    model = class_of(config)._from_config(config, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.data += 0.2 * torch.randn_like(parameter)
        elif name.endswith("bias"):
            parameter.data = 0.2 * torch.randn_like(parameter)
    model.to(dtype).save_pretrained(folder)
    tokenizer = piece_tokenizer(folder, family) if kind == "pieces" else byte_tokenizer(PRE.get(family, "smollm"))
    tokenizer.save_pretrained(folder)
    return folder


def byte_tokenizer(pre: str = "smollm", chat_template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """Byte-level BPE with a few merges and one added token that is not special."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = []
    for word in WORDS:
        parts = ["Ġ", *word]
        while len(parts) > 1:
            if (pair := (parts[0], parts[1])) not in merges:
                merges.append(pair)
            parts[:2] = ["".join(parts[:2])]
    vocabulary = dict.fromkeys([*alphabet, *("".join(pair) for pair in merges)])
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(vocabulary)}, merges=merges))
    backend.model.ignore_merges = pre == "llama-bpe"
    backend.pre_tokenizer = byte_level_pre_tokenizer(pre)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL))
    backend.add_tokens(["[NOTE]"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=SPECIAL[0], eos_token=SPECIAL[1])
    tokenizer.chat_template = chat_template
    return tokenizer


def piece_tokenizer(folder: Path, family: str) -> PreTrainedTokenizerFast:
    """SentencePiece, trained on the spot; ``tokenizer.model`` stays in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    gemma = family.startswith("gemma")
    sentences = [f"{left} {right}, 1969 fährt {left}." for left in WORDS for right in WORDS]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_prefix=str(folder / "tokenizer"), vocab_size=364, model_type="bpe",
        byte_fallback=True, character_coverage=1.0, split_digits=True, add_dummy_prefix=not gemma,
        normalization_rule_name="identity", remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
        minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.vocab").unlink()
    kind = "GemmaTokenizer" if gemma else "LlamaTokenizer"
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind, **tokens}), encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(list(SPECIAL), special_tokens=True)
    tokenizer.add_tokens(["[NOTE]"])
    tokenizer.eos_token = SPECIAL[1]
    tokenizer.chat_template = CHATML
    return tokenizer
