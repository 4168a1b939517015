"""Find the base model of an adapter, and check that the adapter was trained on it.

``adapter_config.json`` names the base. ``base_model.json``, in the same folder, describes its files in training:

    {"commit": the base's on the hub, or null,
     "files": {"model.safetensors": {"bytes": 538090408, "sha256": of its beginning and of 64 blocks spread evenly}},
     "quantization": bitsandbytes' settings, or null,   "dtype": type of the weights that were not quantised,
     "embeddings": how many rows they had in training, if more than in these files}

At most 8 MiB of each file are read, so bases of any size are compared in milliseconds. A change of a few weights alone
can be missed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import errors as hub_errors
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from peft import PeftConfig

from ...errors import ModelError
from ...system.files import replacing
from ...system.outside import open_file, read_text
from ...system.strict_json import read_object
from ..adapter_bounds import require_bounded_adapter
from ..vocabulary import grown_rows
from .load_errors import clear_errors
from .place import ADAPTER_SETTINGS, MODEL_SETTINGS, is_adapter_folder, is_gguf, locate
from .plausible import require_plausible_settings

RECORD_FILE = "base_model.json"
BLOCKS, BLOCK_BYTES = 64, 4096
MAX_HEADER_BYTES = 8 * 2**20 - BLOCKS * BLOCK_BYTES
WEIGHTS, ADAPTER_WEIGHTS = "model*.safetensors", "adapter_model*.safetensors"
MAX_ROWS = 2**24  # of embeddings


def find_base(name: str, revision: str = "main") -> tuple[str, str] | None:
    """Return name and revision of the base of an adapter; ``None`` where ``name`` is a model itself.

    Raise ``ModelError`` where nothing is there, or the base of an adapter cannot be found.
    """
    place = locate(name)
    if is_gguf(place):
        return None
    with clear_errors(name, revision):
        adapter = adapter_settings(place, revision)
        return None if adapter is None else base_of(name, adapter)


def adapter_settings(place: str, revision: str, hub_options: dict[str, Any] | None = None) -> PeftConfig | None:
    """Return the settings of the adapter at a place, or ``None`` where a model is.

    On the hub this takes one request for a model and two for an adapter.
    """
    if Path(place).exists():
        if is_adapter_folder(Path(place)):
            return _read_adapter_settings(place)
        if not is_gguf(place):
            require_plausible_settings(place, Path(place) / MODEL_SETTINGS)
        return None
    hub_options = hub_options or {}
    try:
        settings = hf_hub_download(place, MODEL_SETTINGS, revision=revision, **hub_options)
        require_plausible_settings(place, Path(settings))
        return None
    except hub_errors.LocalEntryNotFoundError:  # offline, and no such model in the cache
        cached = try_to_load_from_cache(place, ADAPTER_SETTINGS, hub_options.get("cache_dir"), revision)
        if not isinstance(cached, str):
            raise
    except hub_errors.EntryNotFoundError:
        try:
            hf_hub_download(place, ADAPTER_SETTINGS, revision=revision, **hub_options)
        except hub_errors.EntryNotFoundError:
            found = f"no model ({MODEL_SETTINGS}) and no adapter ({ADAPTER_SETTINGS})"
            raise ModelError(f"{place}: holds {found} on the hub; expected one of them") from None
    return _read_adapter_settings(place, revision=revision, **hub_options)


def _read_adapter_settings(place: str, **options: Any) -> PeftConfig:
    try:
        settings = PeftConfig.from_pretrained(place, **options)
        require_bounded_adapter(f"{place}: its {ADAPTER_SETTINGS}", settings)
        return settings
    except json.JSONDecodeError as error:
        raise ModelError(f"{place}: its {ADAPTER_SETTINGS} is damaged ({error}); fetch or copy it again") from error
    except (KeyError, TypeError) as error:  # PEFT looks up what the file says, and builds from it
        found = f"its {ADAPTER_SETTINGS} cannot be read by PEFT {version('peft')}"
        raise ModelError(f"{place}: {found} ({error})") from error


def base_of(name: str, adapter: PeftConfig) -> tuple[str, str]:
    """Return name and revision of the base that an adapter's settings name."""
    base = adapter.base_model_name_or_path
    if not base:
        raise ModelError(f"{name}: its {ADAPTER_SETTINGS} names no base model; add base_model_name_or_path there")
    try:
        locate(base)
    except ModelError as error:
        raise ModelError(
            f"{name}: is an adapter whose base model cannot be found: {error}"
            f" (base_model_name_or_path in its {ADAPTER_SETTINGS}: change it there)"
        ) from error
    return base, adapter.revision or "main"


@dataclass(frozen=True)
class BaseRecord:
    """The contents of ``base_model.json``."""

    files: dict[str, dict[str, Any]] = field(default_factory=dict)  # empty where none was found
    commit: str | None = None
    quantization: dict[str, Any] | None = None
    dtype: str | None = None
    embeddings: int | None = None

    def save(self, folder: Path) -> None:
        """Write ``base_model.json``."""
        with replacing(folder / RECORD_FILE) as partial:
            partial.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def record_base(model: Any) -> BaseRecord:
    """Make the record of the base of a loaded model, from the name in its ``config._name_or_path``.

    ``model`` is a transformers model, or a PEFT model over one. The record has no files where the weights are not on
    this disk.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    name = getattr(base.config, "_name_or_path", "")
    files, commit = fingerprint(name, getattr(base, "revision", "main")) if name else ({}, None)
    quantization: Any = getattr(base.config, "quantization_config", None)
    if hasattr(quantization, "to_dict"):
        quantization = quantization.to_dict()
    return BaseRecord(files, commit, quantization, str(base.dtype).removeprefix("torch."), grown_rows(base))


def read_base_record(place: str, revision: str = "main") -> BaseRecord | None:
    """Read the record beside an adapter, in its folder or on the hub; ``None`` where there is none.

    Adapters of other programs have none. Raise ``ModelError`` where the file is no such record.
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
        return _checked(read_object(read_text(file)))
    except (ValueError, TypeError) as error:
        advice = "copy it again, or remove it, so that the base is not checked"
        raise ModelError(f"{file}: is damaged ({error}); {advice}") from error


def _checked(found: dict[str, Any]) -> BaseRecord:
    """Return the record that a file holds; ``TypeError`` where a value is none that ``save`` writes."""
    record = BaseRecord(**{name: found[name] for name in BaseRecord.__dataclass_fields__ if name in found})
    rows, dtype = record.embeddings, record.dtype
    are_fingerprints = isinstance(record.files, dict) and all(
        isinstance(one, dict) and type(one.get("bytes")) is int and isinstance(one.get("sha256"), str)
        for one in record.files.values()
    )
    for name, is_sound in {
        "files": are_fingerprints,
        "commit": record.commit is None or isinstance(record.commit, str),
        "quantization": record.quantization is None or isinstance(record.quantization, dict),
        "dtype": dtype is None or (isinstance(dtype, str) and isinstance(getattr(torch, dtype, None), torch.dtype)),
        "embeddings": rows is None or (type(rows) is int and 0 <= rows <= MAX_ROWS),
    }.items():
        if not is_sound:
            raise TypeError(f"{name} is {getattr(record, name)!r:.60}")
    return record


def require_same_base(name: str, record: BaseRecord, base: str, revision: str = "main") -> None:
    """Raise ``ModelError`` if the weights of ``base`` differ from those that the adapter ``name`` was trained on."""
    files, commit = fingerprint(base, revision)
    if not files or not record.files or _contents(files) == _contents(record.files):
        return
    odd = [file for file, entry in files.items() if entry not in record.files.values()]
    where = f" in {', '.join(odd[:2])}{' and others' if len(odd) > 2 else ''}" if odd else ""
    was = f" (trained on commit {record.commit}, this is {commit})" if record.commit and record.commit != commit else ""
    raise ModelError(
        f"{name}: its base {base} differs{where} from the one that it was trained on{was};"
        f" restore that base, or remove {RECORD_FILE} beside the adapter to use this one anyway"
    )


def fingerprint(name: str, revision: str = "main") -> tuple[dict[str, dict[str, Any]], str | None]:
    """Return size and fingerprint of a model's files of weights by name, and the commit on the hub.

    The files are not read completely. ``name`` is a folder, GGUF file, ``builtin:...``, or a hub id. There are no files
    where the model is not on this disk.
    """
    try:
        place = Path(locate(name))
    except ModelError:
        return {}, None
    commit = None
    if not place.exists():
        try:
            settings = try_to_load_from_cache(name, MODEL_SETTINGS, revision=revision)
        except hub_errors.HFValidationError:  # the name of a model that was made on the spot
            return {}, None
        if not isinstance(settings, str):
            return {}, None
        place = Path(settings).parent
        commit = place.name
    weights = ADAPTER_WEIGHTS if is_adapter_folder(place) else WEIGHTS
    files = [place] if is_gguf(str(place)) else sorted(place.glob(weights))
    return {file.name: _of_file(file) for file in files}, commit


def _of_file(file: Path) -> dict[str, Any]:
    """Return size and hash of a file's beginning (safetensors: names and shapes) and of blocks all over it."""
    size = file.stat().st_size
    digest = hashlib.sha256()
    with open_file(file) as opened:
        header_bytes = min(8 + int.from_bytes(opened.read(8), "little"), MAX_HEADER_BYTES)
        opened.seek(0)
        digest.update(opened.read(header_bytes if file.suffix == ".safetensors" else BLOCK_BYTES))
        for block in range(BLOCKS):
            opened.seek(max(0, size - BLOCK_BYTES) * block // (BLOCKS - 1))
            digest.update(opened.read(BLOCK_BYTES))
    return {"bytes": size, "sha256": digest.hexdigest()}


def _contents(files: dict[str, dict[str, Any]]) -> list[tuple[int, str]]:
    """Return what is compared: everything but the names of the files."""
    return sorted((found["bytes"], found["sha256"]) for found in files.values())
