"""An ordinary model folder: what ``from_pretrained`` takes, and servers and converters besides."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..model.loading.place import locate
from ..model.loading.quiet import no_progress_bars
from ..model.merging import cast_parameters

# Files of a tokenizer that transformers reads and does not write again; llama.cpp's converter wants the first.
KEPT_FILES = ("tokenizer.model",)


def write_model_folder(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    dtype: torch.dtype,
    end_tokens: list[int],
) -> None:
    """Write weights, configuration, generation settings, tokenizer and chat template.

    Args:
        model: The model; its weights are cast in place.
        tokenizer: Its tokenizer.
        folder: An empty folder.
        dtype: Type of the weights.
        end_tokens: Ids that end an answer: the one that a run has taught may not be among those of the base.
    """
    cast_parameters(model, dtype)
    model.config.dtype = dtype
    settings = model.generation_config
    if settings is not None:
        settings._from_model_config = False  # else generate would take the end from config.json
        settings.eos_token_id = end_tokens if len(end_tokens) > 1 else end_tokens[0]
        if settings.pad_token_id is None:
            settings.pad_token_id = tokenizer.pad_token_id
        try:
            settings.validate(strict=True)
        except ValueError:  # a temperature without do_sample: what it means is said, else it would not be written
            settings.do_sample = True
    with no_progress_bars():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def keep_files(folder: Path, names: Iterable[str]) -> None:
    """Copy what only converters read, from the first place that has it.

    Args:
        folder: The new model folder.
        names: Names of models, most important first.
    """
    places = [locate(name) for name in names]
    for file in KEPT_FILES:
        found = next(filter(None, (_file_in(place, file) for place in places)), None)
        if found is not None:
            shutil.copyfile(found, folder / file)


def _file_in(place: str, file: str) -> Path | None:
    """A file in a folder, or in the cache of the hub."""
    if Path(place).exists():
        return Path(place) / file if (Path(place) / file).is_file() else None
    cached = try_to_load_from_cache(place, file)
    return Path(cached) if isinstance(cached, str) else None
