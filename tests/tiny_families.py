"""A tiny random model of every family that is converted to GGUF, with tokenizers of both kinds."""

import json
from pathlib import Path

import sentencepiece
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
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
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 256}

# Name -> (settings, kind of tokenizer). Heads are 16 wide, but where stated.
FAMILIES: dict[str, tuple[PreTrainedConfig, str]] = {
    "llama": (LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True), "bytes"),
    "llama-tied": (LlamaConfig(**SIZES, tie_word_embeddings=True, head_dim=32), "bytes"),
    "llama3.1": (LlamaConfig(**SIZES, rope_parameters=LLAMA3_ROPE), "bytes"),
    "llama2": (LlamaConfig(**SIZES, rope_parameters=LINEAR_ROPE), "pieces"),
    "mistral": (MistralConfig(**SIZES, head_dim=16), "pieces"),
    "qwen2": (Qwen2Config(**SIZES, rope_parameters=YARN_ROPE), "bytes"),
    "qwen3": (Qwen3Config(**SIZES, head_dim=32), "bytes"),
    "gemma2": (Gemma2Config(**SIZES, **GEMMA), "pieces"),
    "gemma3": (Gemma3TextConfig(**(SIZES | {"num_hidden_layers": 7}), **GEMMA, rope_parameters=GEMMA3_ROPE), "pieces"),
    "phi3": (Phi3Config(**SIZES, sliding_window=256), "pieces"),
    "phi3-long": (Phi3Config(**SIZES, original_max_position_embeddings=256, rope_parameters=LONG_ROPE), "pieces"),
    "smollm3": (SmolLM3Config(**(SIZES | {"num_hidden_layers": 4}), tie_word_embeddings=True), "bytes"),
}


# How byte-level tokenizers split text; for Qwen2 models transformers assumes it.
PRE = {"qwen2": "qwen2", "qwen3": "qwen2", "llama3.1": "llama-bpe"}


def save_family(folder: Path, family: str, *, dtype: torch.dtype = torch.bfloat16, **settings: object) -> Path:
    """Write a model folder of a family with random weights, norms and biases too; ``settings`` change its config."""
    config, kind = FAMILIES[family]
    config = type(config).from_dict({**config.to_dict(), **settings})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
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
