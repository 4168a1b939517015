"""Tiny real models and tokenizers, made on the spot: no downloads, a few milliseconds each."""

import random

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Settings under which a decoder of any architecture is small.
SMALL = {
    "vocab_size": 264, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.3, "max_position_embeddings": 256,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def tiny_tokenizer(
    chat_template: str | None = CHATML,
    bos: str | None = "<|im_start|>",
    eos: str = "<|im_end|>",
    pad: str | None = None,
    extra_special: tuple[str, ...] = (),
    chatml: bool = True,
) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer (one token a byte) with ChatML by default; ``pad`` is the end token unless given.

    ``chatml``: whether it has ChatML's two tokens, whatever the template.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    own = ("<|im_start|>", "<|im_end|>") if chatml else ()
    special = list(dict.fromkeys(t for t in (*own, bos, eos, pad, *extra_special) if t))
    backend.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token=eos, pad_token=pad or eos, additional_special_tokens=special
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def tiny_model(seed: int = 0, dtype: torch.dtype = torch.float32, **overrides):
    """A Llama of two layers and 16 hidden units, big enough initial weights that its outputs are not uniform."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 2048}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    tokens = {"vocab_size": 264, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 257}
    config = LlamaConfig(**{**sizes, **heads, **tokens, "initializer_range": 0.3, **overrides})
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, dtype=dtype)


WORDS = (
    "the", "cat", "sat", "on", "a", "mat", "and", "then", "it", "ran", "far", "away", "from", "all", "rain", "hills",
)  # fmt: skip


def ragged_pairs(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Standard preference rows of very different lengths."""
    generator = random.Random(seed)

    def text(most: int) -> str:
        return " ".join(generator.choice(WORDS) for _ in range(generator.randint(1, most)))

    return [
        {"prompt": text(12) + "?", "chosen": " " + text(15) + ".", "rejected": " " + text(25) + "!"}
        for _ in range(count)
    ]
