"""The tokenizer of a GGUF file, token for token the one that the model was trained with.

A GGUF file stores the vocabulary and the merges, but of the pre-tokenizer (how text is cut before anything is merged)
only a name, ``tokenizer.ggml.pre``. Byte-level vocabularies whose name is known here are built from the file itself.
transformers, which builds the others, ignores some names (``smollm``: ``"\\n\\n1."`` becomes other tokens than in
training), never looks whole words up (``llama-bpe``), and in 5.17 mistakes the begin token of Llama files for the end.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gguf import GGUFReader, TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from .gguf_header import check_gguf

# How text is cut, by ``tokenizer.ggml.pre``. Source of names and patterns: llama.cpp, src/llama-vocab.cpp.
DIGIT_BY_DIGIT = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})
AS_GPT2 = frozenset({"gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "exaone4"})
AS_LLAMA3 = frozenset({"llama3", "llama-v3", "llama-bpe"})
AS_QWEN2 = frozenset({"qwen2", "deepseek-r1-qwen", "stablelm2"})

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3_PATTERN = _WORDS + r"|\p{N}{1,3}" + _REST
QWEN2_PATTERN = _WORDS + r"|\p{N}" + _REST

# Families that look a whole word up before merging its letters, and start every text with the begin token.
# Source: llama.cpp, ``ignore_merges`` and ``add_bos`` there.
WHOLE_WORDS_FIRST = AS_LLAMA3

SPECIAL_TOKENS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def load_gguf_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """Build the tokenizer of a GGUF file, with its chat template, special tokens and context length.

    Args:
        path: The ``.gguf`` file.

    Returns:
        A fast tokenizer; its ``model_max_length`` is the model's context length.
    """
    check_gguf(path)
    fields = GGUFReader(path).fields

    def read(key: str, default: Any = None) -> Any:
        return fields[key].contents() if key in fields else default

    tokens = read("tokenizer.ggml.tokens", [])
    settings = {
        name: tokens[token_id]
        for name, key in SPECIAL_TOKENS.items()
        if (token_id := read(f"tokenizer.ggml.{key}_token_id")) is not None
    }
    if context_length := read(f"{read('general.architecture')}.context_length"):
        settings["model_max_length"] = int(context_length)
    kind = read("tokenizer.ggml.pre")
    pre_tokenizer = byte_level_pre_tokenizer(kind) if read("tokenizer.ggml.model") == "gpt2" else None
    if pre_tokenizer is None:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, **settings)
        for name, value in settings.items():
            setattr(tokenizer, name, value)  # once more: 5.17 takes its own mistake for better
        return tokenizer
    backend = _byte_level_backend(tokens, read("tokenizer.ggml.merges", []), read("tokenizer.ggml.token_type", []))
    backend.pre_tokenizer = pre_tokenizer
    backend.model.ignore_merges = kind in WHOLE_WORDS_FIRST
    add_bos = read("tokenizer.ggml.add_bos_token", kind in WHOLE_WORDS_FIRST)
    if add_bos and "bos_token" in settings:
        bos = settings["bos_token"]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **settings)
    tokenizer.chat_template = read("tokenizer.chat_template")
    return tokenizer


def byte_level_pre_tokenizer(kind: str | None) -> pre_tokenizers.PreTokenizer | None:
    """How a byte-level vocabulary wants its text cut.

    Args:
        kind: ``tokenizer.ggml.pre``.

    Returns:
        The pre-tokenizer; ``None`` for a name that is not known here.
    """
    if kind in AS_GPT2:
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if kind in DIGIT_BY_DIGIT:
        cut: pre_tokenizers.PreTokenizer = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    if kind in AS_LLAMA3 or kind in AS_QWEN2:
        cut = pre_tokenizers.Split(Regex(LLAMA3_PATTERN if kind in AS_LLAMA3 else QWEN2_PATTERN), behavior="isolated")
        return pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    return None


def _byte_level_backend(tokens: list[str], merges: list[str], token_types: list[int]) -> Tokenizer:
    """Byte-level BPE over the file's tokens, in their order; control and user-defined tokens are never cut."""
    pairs: list[tuple[str, str]] = []
    for merge in merges:
        left, _, right = merge.partition(" ")
        pairs.append((left, right))
    backend = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=pairs))
    backend.decoder = decoders.ByteLevel()
    added = [
        AddedToken(token, normalized=False, special=kind == TokenType.CONTROL)
        for token, kind in zip(tokens, token_types, strict=False)
        if kind in (TokenType.CONTROL, TokenType.USER_DEFINED)
    ]
    backend.add_special_tokens([token for token in added if token.special])
    backend.add_tokens([token for token in added if not token.special])
    return backend
