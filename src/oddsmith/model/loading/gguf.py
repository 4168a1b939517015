"""Load a GGUF file as a trainable transformers model and its tokenizer, without the losses of transformers' reader.

- Weights of any quantisation become dense.
- Decimals are restored: 9.999999747378752e-06, the nearest float32, becomes 1e-5 again.
- The tokenizer makes the tokens that the model was trained with. A GGUF file stores the vocabulary and the merges, but
  of the pre-tokenizer (how text is cut before merging) only a name, ``tokenizer.ggml.pre``. Byte-level vocabularies of
  the names below are built from the file itself. transformers, which builds the others, ignores some names (``smollm``:
  ``"\\n\\n1."`` becomes other tokens than in training), never looks whole words up (``llama-bpe``), and in 5.17
  mistakes the begin token of Llama files for the end.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from gguf import GGUFReader, TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from .completeness import require_all_weights
from .gguf_header import SPECIAL_TOKENS, check_gguf
from .plausible import require_plausible_size
from .quiet import no_progress_bars

# How text is cut, by ``tokenizer.ggml.pre``. Source of names and patterns: llama.cpp, src/llama-vocab.cpp.
DIGIT_BY_DIGIT = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})
AS_GPT2 = frozenset({"gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "exaone4"})
AS_LLAMA3 = frozenset({"llama3", "llama-v3", "llama-bpe"})
AS_QWEN2 = frozenset({"qwen2", "deepseek-r1-qwen", "stablelm2"})

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3_PATTERN = _WORDS + r"|\p{N}{1,3}" + _REST
QWEN2_PATTERN = _WORDS + r"|\p{N}" + _REST
# Accents that are characters of their own stay with their letters.
QWEN35_PATTERN = QWEN2_PATTERN.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(
    r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]"
)
PATTERNS = {
    **dict.fromkeys(AS_LLAMA3, LLAMA3_PATTERN),
    **dict.fromkeys(AS_QWEN2, QWEN2_PATTERN),
    "qwen35": QWEN35_PATTERN,
}

# Families that look a whole word up before merging its letters, and start every text with the begin token.
# Source: ``ignore_merges`` and ``add_bos`` in llama.cpp.
WHOLE_WORDS_FIRST = AS_LLAMA3


def load_gguf_model(path: Path, *, dtype: str | torch.dtype = torch.float32, **kwargs: Any) -> PreTrainedModel:
    """Read a GGUF file into a dense model in evaluation mode, which can be trained and saved like any other.

    ``dtype`` is the type of the weights; ``kwargs`` go to ``from_pretrained``.
    """
    config = load_gguf_config(path)
    auto_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    require_plausible_size(str(path), path, config, auto_class)
    if hasattr(transformers, "GgufConfig"):
        # Without it transformers takes the model for quantised and refuses to train or save it.
        kwargs["quantization_config"] = transformers.GgufConfig(gguf_file=path.name, dequantize=True)
    with contextlib.redirect_stderr(io.StringIO()):  # no setting switches its progress bar off
        kwargs |= {"gguf_file": path.name, "dtype": dtype, "output_loading_info": True}
        model, found = auto_class.from_pretrained(path.parent, config=config, **kwargs)
    require_all_weights(str(path), found)
    return model


def load_gguf_config(path: Path) -> PreTrainedConfig:
    """Return the model's configuration, with the decimals that its author wrote."""
    check_gguf(path)
    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    for key, value in list(vars(config).items()):
        if isinstance(value, float):
            setattr(config, key, nearest_decimal(value))
        elif isinstance(value, dict):
            setattr(config, key, {k: nearest_decimal(v) if isinstance(v, float) else v for k, v in value.items()})
    vars(config).pop("_model_name_or_path", None)  # the file's title, which is no name on the hub
    return config


def nearest_decimal(value: float) -> float:
    """Return the shortest decimal that float32 rounds to ``value``; any other number stays unchanged."""
    single = np.float32(value)
    return float(str(single)) if float(single) == value else value


def convert_gguf(path: Path, folder: Path) -> None:
    """Write a GGUF file as a float32 model folder with its tokenizer and chat template.

    float32 keeps the dequantised values exactly; a 4-bit weight times its 16-bit scale needs more digits than bf16 has.
    """
    load_gguf_tokenizer(path).save_pretrained(folder)
    with no_progress_bars():
        load_gguf_model(path).save_pretrained(folder)


@contextlib.contextmanager
def as_model_folder(path: Path) -> Iterator[Path]:
    """Write a GGUF file as a temporary model folder, which is removed at the end of the block."""
    with tempfile.TemporaryDirectory(prefix="oddsmith-gguf-") as folder:
        convert_gguf(path, Path(folder))
        yield Path(folder)


def load_gguf_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """Build the fast tokenizer of a GGUF file, with its chat template, special tokens and context length."""
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
            setattr(tokenizer, name, value)  # again: transformers 5.17 overrides them with wrong ones
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
    """Return the pre-tokenizer of a byte-level vocabulary by its ``tokenizer.ggml.pre``; ``None`` for other names."""
    if kind in AS_GPT2:
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if kind in DIGIT_BY_DIGIT:
        cut: pre_tokenizers.PreTokenizer = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    if kind in PATTERNS:
        cut = pre_tokenizers.Split(Regex(PATTERNS[kind]), behavior="isolated")
        return pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    return None


def _byte_level_backend(tokens: list[str], merges: list[str], token_types: list[int]) -> Tokenizer:
    """Build byte-level BPE over the file's tokens, in their order; control and user-defined tokens are never cut."""
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
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
