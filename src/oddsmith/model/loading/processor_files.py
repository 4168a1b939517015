"""Take the files of a model's processor along: what turns images and sound into tensors is no part of the weights.

transformers' ``AutoProcessor`` reads them beside the tokenizer, so a trained model without them sees nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import errors as hub_errors
from huggingface_hub import hf_hub_download

from ...errors import ModelError
from ...system.outside import read_text
from ...system.strict_json import read_object
from ..text_part import is_multimodal
from .place import is_gguf, locate

# Of a feature extractor for sound the file has the same name as that for images.
CHAT_TEMPLATE = "chat_template.json"
FILES = (
    *("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"),
    *("audio_tokenizer_config.json", CHAT_TEMPLATE),
)
_MISSING = (
    *(hub_errors.EntryNotFoundError, hub_errors.LocalEntryNotFoundError, hub_errors.HFValidationError),
    hub_errors.HfHubHTTPError,
)


def processor_template(place: str, **source: Any) -> str | None:
    """Return the chat template of a model whose processor has one and whose tokenizer has none, as of LLaVA."""
    for file in _files(place, (CHAT_TEMPLATE,), **source):
        template = read_object(read_text(file)).get("chat_template")
        return template if isinstance(template, str) else None
    return None


def processor_files(name: str, **source: Any) -> list[Path]:
    """Return the files of the processor of a model, fetched where it is on the hub and not in the cache yet.

    ``source`` has ``revision`` and options of the hub. What cannot be reached is left out.
    """
    try:
        place = locate(name)
    except ModelError:  # a model that was made on the spot
        return []
    return [] if is_gguf(place) else _files(place, FILES, **source)


def _files(place: str, names: Iterable[str], **source: Any) -> list[Path]:
    if Path(place).exists():
        return [file for file in (Path(place) / name for name in names) if file.is_file()]
    found = []
    for file in names:
        with suppress(*_MISSING):
            found.append(Path(hf_hub_download(place, file, **source)))
    return found


def copy_processor_files(model: Any, folder: Path) -> None:
    """Copy the processor's files of a loaded model, wrapped by PEFT or not, into the folder that it is saved in."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    name = getattr(getattr(base, "config", None), "_name_or_path", "")
    if not (name and is_multimodal(base)):
        return
    for file in processor_files(name, revision=getattr(base, "revision", "main"), local_files_only=True):
        copy = folder / file.name
        if not (copy.exists() and copy.samefile(file)):
            shutil.copyfile(file, copy)
