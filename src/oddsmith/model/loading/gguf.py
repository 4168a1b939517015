"""GGUF files as trainable transformers models: dequantised, with what the reader in transformers loses put back.

Decimals come back as their author wrote them: 9.999999747378752e-06, a float32's idea of it, is 1e-5 again.
The tokenizer is in ``gguf_tokenizer``.
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
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from .gguf_header import check_gguf
from .gguf_tokenizer import load_gguf_tokenizer
from .quiet import no_progress_bars


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
    check_gguf(path)
    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    for key, value in list(vars(config).items()):
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


def convert_gguf(path: Path, folder: Path) -> None:
    """Write a GGUF file as an ordinary float32 model folder: weights, configuration, tokenizer, chat template.

    float32 keeps the dequantised values exactly; a 4-bit weight times its 16-bit scale needs more digits than bf16 has.
    """
    load_gguf_tokenizer(path).save_pretrained(folder)
    with no_progress_bars():
        load_gguf_model(path).save_pretrained(folder)


@contextlib.contextmanager
def as_model_folder(path: Path) -> Iterator[Path]:
    """A GGUF file as an ordinary model folder, for as long as the block lasts."""
    with tempfile.TemporaryDirectory(prefix="oddsmith-gguf-") as folder:
        convert_gguf(path, Path(folder))
        yield Path(folder)
