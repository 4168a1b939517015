"""GGUF files as trainable transformers models: dequantised, with what the reader in transformers loses put back.

Put back here, each seen on real files:

- a pre-tokenizer that splits digits (``tokenizer.ggml.pre`` = ``smollm`` and its kin): without it ``"\\n\\n1."``
  becomes other tokens than the model was trained on;
- whole words looked up before merging (``llama-bpe``, ``tekken``);
- decimals that went through float32: 9.999999747378752e-06 is 1e-5 again;
- ``model_max_length`` of the tokenizer, from the context length.
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
from tokenizers import models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from .quiet import no_progress_bars

# Byte-level BPE whose digits stand alone, and those that take a word from the vocabulary before they merge.
# Source: llama.cpp, src/llama-vocab.cpp (``regex_exprs`` and ``ignore_merges`` by pre-tokenizer type).
DIGIT_SPLITTING = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})
WHOLE_WORDS_FIRST = frozenset({"llama3", "llama-v3", "llama-bpe", "tekken"})


def load_gguf_model(path: Path, *, dtype: str | torch.dtype = torch.float32, **kwargs: Any) -> PreTrainedModel:
    """Read a GGUF file of any quantisation into a dense model.

    Args:
        path: The ``.gguf`` file.
        dtype: Type of the weights.
        **kwargs: Passed on to ``from_pretrained``.

    Returns:
        An ordinary model in evaluation mode: it can be trained and saved.
    """
    config = load_gguf_config(path)
    auto_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    if hasattr(transformers, "GgufConfig"):
        # Without it the model counts as quantised, whatever it holds, and refuses to be trained or saved.
        kwargs["quantization_config"] = transformers.GgufConfig(gguf_file=path.name, dequantize=True)
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar heeds no setting
        return auto_class.from_pretrained(path.parent, config=config, gguf_file=path.name, dtype=dtype, **kwargs)


def load_gguf_config(path: Path) -> PreTrainedConfig:
    """The model's configuration as the file states it, in the decimals that its author wrote."""
    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    for key, value in vars(config).items():
        if isinstance(value, float):
            setattr(config, key, nearest_decimal(value))
        elif isinstance(value, dict):
            setattr(config, key, {k: nearest_decimal(v) if isinstance(v, float) else v for k, v in value.items()})
    vars(config).pop("_model_name_or_path", None)  # the file's title, which is nobody's name on the hub
    return config


def nearest_decimal(value: float) -> float:
    """Undo a trip through float32: the shortest decimal that float32 rounds to ``value``.

    A number that no float32 equals did not come out of the file and stays as it is.
    """
    single = np.float32(value)
    return float(str(single)) if float(single) == value else value


def load_gguf_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a GGUF file, splitting text as the model was trained to see it."""
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    metadata = _read_metadata(path)
    backend = tokenizer.backend_tokenizer
    kind = metadata.get("tokenizer.ggml.pre")
    if isinstance(backend.model, models.BPE):
        if kind in DIGIT_SPLITTING and isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel):
            backend.pre_tokenizer = pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Digits(individual_digits=True),
                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
                ]
            )
        if kind in WHOLE_WORDS_FIRST:
            backend.model.ignore_merges = True
    context_length = metadata.get(f"{metadata['general.architecture']}.context_length")
    if context_length:
        tokenizer.model_max_length = int(context_length)
        tokenizer.init_kwargs["model_max_length"] = int(context_length)
    return tokenizer


def convert_gguf(path: Path, folder: Path) -> None:
    """Write a GGUF file as an ordinary float32 model folder: weights, configuration, tokenizer, chat template.

    float32 keeps the dequantised values exactly; a 4-bit weight times its 16-bit scale needs more digits than bf16 has.
    """
    tokenizer = load_gguf_tokenizer(path)
    for key in ("name_or_path", "vocab_file", "is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(key, None)  # of this machine alone
    tokenizer.save_pretrained(folder)
    with no_progress_bars():
        load_gguf_model(path).save_pretrained(folder)


@contextlib.contextmanager
def as_model_folder(path: Path) -> Iterator[Path]:
    """A GGUF file as an ordinary model folder, for as long as the block lasts."""
    with tempfile.TemporaryDirectory(prefix="oddsmith-gguf-") as folder:
        convert_gguf(path, Path(folder))
        yield Path(folder)


def _read_metadata(path: Path) -> dict[str, Any]:
    """The file's single-valued metadata (no vocabulary, no merges)."""
    from gguf import GGUFReader, GGUFValueType

    reader = GGUFReader(path)
    return {key: field.contents() for key, field in reader.fields.items() if field.types[0] != GGUFValueType.ARRAY}
