"""Which base an adapter was trained on, as ``base_model.json`` beside it: enough to notice that it is another one now.

    {"commit": the base's on the hub, or null,
     "files": {"model.safetensors": {"bytes": 538090408, "sha256": of its beginning and of 64 blocks spread evenly}},
     "quantization": bitsandbytes' settings, or null,   "dtype": type of the weights that were not quantised}

It names no base: ``adapter_config.json`` does. At most 8 MiB of each file are read, so a base of any size is told from
another in milliseconds; a change of a few weights alone can be missed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import errors as hub_errors
from huggingface_hub import hf_hub_download, try_to_load_from_cache

from ...errors import ModelError
from .place import MODEL_SETTINGS, is_gguf, locate

RECORD_FILE = "base_model.json"
BLOCKS, BLOCK_BYTES = 64, 4096
LONGEST_HEADER_BYTES = 8 * 2**20 - BLOCKS * BLOCK_BYTES
WEIGHTS = "model*.safetensors"


@dataclass(frozen=True)
class BaseRecord:
    """What is remembered of a base.

    Args:
        files: Name -> ``{"bytes": size, "sha256": fingerprint}`` of each file of weights; empty where none was found.
        commit: The commit on the hub.
        quantization: How bitsandbytes quantised it for the training, as its ``to_dict`` says it.
        dtype: Type of the weights that were not quantised, e.g. ``"bfloat16"``.
    """

    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    commit: str | None = None
    quantization: dict[str, Any] | None = None
    dtype: str | None = None

    def save(self, folder: Path) -> None:
        """Write ``base_model.json``."""
        (folder / RECORD_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def record_base(model: Any) -> BaseRecord:
    """The record of the base that a loaded model stands on.

    Args:
        model: A transformers model, or a PEFT model over one. Its ``config._name_or_path`` says where it came from.

    Returns:
        The record; without files where the model came from nowhere that can be found again.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    name = getattr(base.config, "_name_or_path", "")
    files, commit = fingerprint(name, getattr(base, "revision", "main")) if name else ({}, None)
    quantization: Any = getattr(base.config, "quantization_config", None)
    if hasattr(quantization, "to_dict"):
        quantization = quantization.to_dict()
    return BaseRecord(files, commit, quantization, str(base.dtype).removeprefix("torch."))


def read_base_record(place: str, revision: str = "main") -> BaseRecord | None:
    """The record beside an adapter.

    Args:
        place: The adapter's folder, or its id on the hub.
        revision: Of the adapter.

    Returns:
        The record; ``None`` where there is none, as beside adapters that others have made.

    Raises:
        ModelError: It is no such record.
    """
    if Path(place).exists():
        file = Path(place) / RECORD_FILE
        if not file.is_file():
            return None
    else:
        try:
            file = Path(hf_hub_download(place, RECORD_FILE, revision=revision))
        except (hub_errors.EntryNotFoundError, hub_errors.LocalEntryNotFoundError):
            return None
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
        known = {name: fields[name] for name in BaseRecord.__dataclass_fields__ if name in fields}
        return BaseRecord(**known)
    except (ValueError, TypeError) as error:
        raise ModelError(f"{file}: is damaged ({error}); copy it again, or remove it to go without") from error


def require_same_base(name: str, record: BaseRecord, base: str, revision: str = "main") -> None:
    """Refuse a base that is not the one an adapter was trained on.

    Args:
        name: The adapter, for the message.
        record: What was remembered.
        base: Name of the base as the adapter gives it.
        revision: Of the base.

    Raises:
        ModelError: Its weights are others.
    """
    files, commit = fingerprint(base, revision)
    if not files or not record.files or _contents(files) == _contents(record.files):
        return
    odd = [file for file, found in files.items() if found not in record.files.values()]
    where = f" in {', '.join(odd[:2])}{' and others' if len(odd) > 2 else ''}" if odd else ""
    was = f" (trained on commit {record.commit}, this is {commit})" if record.commit and record.commit != commit else ""
    raise ModelError(
        f"{name}: its base {base} differs{where} from the one that it was trained on{was};"
        f" put that one back, or remove {RECORD_FILE} beside the adapter to use this one all the same"
    )


def fingerprint(name: str, revision: str = "main") -> tuple[dict[str, dict[str, Any]], str | None]:
    """Tell a model's weights without reading them whole.

    Args:
        name: Folder, GGUF file, ``builtin:...``, or a hub id that is in the cache.
        revision: Branch, tag or commit on the hub.

    Returns:
        File name -> size and fingerprint, and the commit on the hub. Nothing where the model is not on this disk.
    """
    try:
        place = Path(locate(name))
    except ModelError:
        return {}, None
    commit = None
    if not place.exists():
        cached = _in_cache(name, revision)
        if cached is None:
            return {}, None
        place, commit = cached, cached.name
    if is_gguf(str(place)):
        return {place.name: _of_file(place)}, commit
    return {file.name: _of_file(file) for file in sorted(place.glob(WEIGHTS))}, commit


def _in_cache(name: str, revision: str) -> Path | None:
    """The folder of a hub model that has been downloaded; it is named after the commit."""
    try:
        settings = try_to_load_from_cache(name, MODEL_SETTINGS, revision=revision)
    except hub_errors.HFValidationError:  # the name of a model that was made on the spot
        return None
    return Path(settings).parent if isinstance(settings, str) else None


def _of_file(file: Path) -> dict[str, Any]:
    """Size, and the hash of the file's beginning (safetensors: names and shapes) and of blocks all over it."""
    size = file.stat().st_size
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        header_bytes = min(8 + int.from_bytes(opened.read(8), "little"), LONGEST_HEADER_BYTES)
        opened.seek(0)
        digest.update(opened.read(header_bytes if file.suffix == ".safetensors" else BLOCK_BYTES))
        for block in range(BLOCKS):
            opened.seek(max(0, size - BLOCK_BYTES) * block // (BLOCKS - 1))
            digest.update(opened.read(BLOCK_BYTES))
    return {"bytes": size, "sha256": digest.hexdigest()}


def _contents(files: dict[str, dict[str, Any]]) -> list[tuple[int, str]]:
    """What is compared: a file may have another name."""
    return sorted((found["bytes"], found["sha256"]) for found in files.values())
