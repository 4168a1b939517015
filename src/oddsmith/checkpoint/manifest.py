"""Write and verify ``manifest.json``, which makes a folder a checkpoint. Needs no torch.

    begin    makes the folder, with an empty ``manifest.json.partial`` in it: an unfinished save
    ...      every process writes its files
    commit   flushes every file to the disk, then renames the manifest into place, then flushes the folder

The files are written in their final place: a folder that is renamed while other processes write into it loses files. A
process that is killed at any moment leaves either a complete checkpoint or an unfinished save.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import CheckpointError, first_line
from ..system.files import flush_to_disk
from ..system.outside import open_file
from ..system.run_folder import EVENTS_FILE, MANIFEST_FILE, SETTINGS_FILE, TRAINER_STATE_FILE
from ..system.strict_json import read_json, strict

UNFINISHED = f"{MANIFEST_FILE}.partial"
FORMAT = 1
MAX_BYTES = 16 * 2**20
MAX_DEPTH = 32
# Files that a loader might read although the manifest does not list them: weights, pickles, code.
LOADED_SUFFIXES = frozenset(
    {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".msgpack", ".h5", ".py"}
)
PICKLED_SUFFIXES = LOADED_SUFFIXES - {".safetensors", ".py"}
# What transformers' Trainer leaves beside a model, and so TRL's, Axolotl's, LLaMA-Factory's and Unsloth's.
OTHER_TRAINERS_FILES = (TRAINER_STATE_FILE, "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth")
OUR_FILES = (MANIFEST_FILE, UNFINISHED, "process-0.json", SETTINGS_FILE, EVENTS_FILE)
MODEL_FILES = ("config.json", "adapter_config.json")


@dataclass(frozen=True)
class Manifest:
    """The files of a checkpoint, and the run that saved it."""

    step: int  # optimizer steps done
    files: dict[str, dict[str, Any]]  # path within the checkpoint -> {"bytes": size, "sha256": digest}
    world_size: int = 1
    pairs_per_step: int = 0  # pairs of one optimizer step
    sharded_by: str | None = None  # "FSDP" or "DeepSpeed", which write their own files; else no file can run code
    versions: dict[str, str] = field(default_factory=dict)  # package -> version
    settings: dict[str, Any] = field(default_factory=dict)  # those that determine the weights
    data: dict[str, dict[str, Any]] = field(
        default_factory=dict
    )  # dataset -> {"sha256": of its tokens, "pairs": count}
    base: dict[str, Any] = field(default_factory=dict)  # files and commit of the base model


def begin(folder: Path) -> None:
    """Make the folder ``RUN/checkpoint-STEP``, which must not exist yet, and mark it as unfinished."""
    folder.mkdir(parents=True)
    (folder / UNFINISHED).touch()


def commit(folder: Path, **facts: Any) -> Manifest:
    """Make a folder a checkpoint, once all processes have written their files, by writing its manifest.

    ``facts`` are the fields of ``Manifest`` without ``files``.
    """
    names = [name for name in files_in(folder) if name != UNFINISHED]
    entries = _in_threads(lambda name: _entry(folder / name, sync=True), names)
    manifest = Manifest(files=dict(zip(names, entries, strict=True)), **facts)
    for inner in sorted({(folder / name).parent for name in names} - {folder}):
        flush_to_disk(inner)
    with (folder / UNFINISHED).open("w", encoding="utf-8") as file:
        json.dump(strict({"format": FORMAT, **asdict(manifest)}), file, indent=1, allow_nan=False)
    flush_to_disk(folder / UNFINISHED)
    os.replace(folder / UNFINISHED, folder / MANIFEST_FILE)
    flush_to_disk(folder)
    flush_to_disk(folder.parent)
    return manifest


def retract(folder: Path) -> None:
    """Turn a checkpoint into an unfinished save, before it is removed."""
    if (folder / MANIFEST_FILE).is_file():
        os.replace(folder / MANIFEST_FILE, folder / UNFINISHED)


def verify(folder: Path, *, contents: bool = True) -> Manifest:
    """Return the manifest of a checkpoint, and compare every file with it, or only the sizes without ``contents``.

    ``CheckpointError`` if the folder is not a checkpoint, or differs from its manifest.
    """
    if folder.is_symlink():
        raise CheckpointError(f"{folder}: is a symbolic link; expected the checkpoint itself")
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such checkpoint; expected a folder such as RUN/checkpoint-100")
    manifest = read_manifest(folder)
    found = dict.fromkeys(files_in(folder))
    missing = [name for name in manifest.files if name not in found]
    if missing:
        more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"{folder}: {missing[0]} is missing{more}")
    _refuse_unsafe(folder, manifest, found)
    for name, entry in manifest.files.items():
        size = (folder / name).stat().st_size
        if size != entry["bytes"]:
            raise CheckpointError(f"{folder}: {name} has {size:,} bytes; {entry['bytes']:,} were written")
    if contents:
        entries = _in_threads(lambda name: _read_entry(folder, name), manifest.files)
        for (name, entry), present in zip(manifest.files.items(), entries, strict=True):
            if present["sha256"] != entry["sha256"]:
                raise CheckpointError(f"{folder}: {name} is damaged (its SHA-256 is not the one that was written)")
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a checkpoint, but not its files; ``CheckpointError`` if it is missing or damaged."""
    path = folder / MANIFEST_FILE
    try:
        if path.is_symlink():
            raise CheckpointError(f"{folder}: {MANIFEST_FILE} is a symbolic link; expected the file itself")
        if not stat.S_ISREG(path.lstat().st_mode):  # a pipe would keep its reader waiting
            raise CheckpointError(f"{folder}: {MANIFEST_FILE} is no ordinary file")
        with open_file(path, follow=False) as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        require_ours(folder)
        why = f"it has no {MANIFEST_FILE}, so its files cannot be verified"
        if (folder / UNFINISHED).exists():
            why = "its save was never finished"
        raise CheckpointError(f"{folder}: is no checkpoint: {why}") from None
    except OSError as error:
        raise CheckpointError(f"{folder}: {MANIFEST_FILE} cannot be read ({error.strerror})") from error
    if len(data) > MAX_BYTES:
        raise CheckpointError(f"{folder}: {MANIFEST_FILE} is larger than {MAX_BYTES:,} bytes")
    try:
        return _parsed(read_json(data.decode()))
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{folder}: {MANIFEST_FILE} is damaged ({reason_of(error)})") from None


def file_of_another_trainer(folder: Path) -> str | None:
    """Return a file by which a folder is a checkpoint or the result of another trainer; ``None`` if it is not."""
    if _is_ours(folder):
        return None
    return next((name for name in OTHER_TRAINERS_FILES if (folder / name).is_file()), None)


def _is_ours(folder: Path) -> bool:
    return any((folder / name).exists() for name in OUR_FILES)


def require_ours(folder: Path) -> None:
    """Raise a ``CheckpointError`` for a checkpoint of another trainer, or a model: its weights can start a new run."""
    found = file_of_another_trainer(folder)
    if found is not None:
        what = f"was written by another trainer (it has {found} and no {MANIFEST_FILE})"
    elif any((folder / name).is_file() for name in MODEL_FILES) and not _is_ours(folder):
        what = "is a model, and no checkpoint of a run"
    else:
        return
    raise CheckpointError(f"{folder}: {what}, so no run goes on from here; {start_anew(folder)}")


def start_anew(folder: Path) -> str:
    """Say how a new run starts from the weights in a folder."""
    return f'start a new one from its weights: --from-weights {folder} (in Python: ORPOTrainer("{folder}", ...))'


def is_unfinished(folder: Path) -> bool:
    """Return whether a folder is an interrupted save, which never was a checkpoint."""
    return (folder / UNFINISHED).is_file() and not (folder / MANIFEST_FILE).exists()


def files_in(folder: Path) -> Iterator[str]:
    """Yield the files of a checkpoint except its manifest, as ``a/b``, sorted.

    A ``CheckpointError`` refuses symbolic links, special files and folders that are nested too deeply.
    """
    yield from sorted(_walk(folder, PurePosixPath()))


def _walk(folder: Path, inner: PurePosixPath) -> Iterator[str]:
    if len(inner.parts) > MAX_DEPTH:
        raise CheckpointError(f"{folder}: folders lie more than {MAX_DEPTH} deep in each other")
    with os.scandir(folder / inner) as entries:
        for entry in entries:
            name = inner / entry.name
            mode = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISLNK(mode):
                raise CheckpointError(f"{folder}: {name} is a symbolic link; expected the file itself")
            if stat.S_ISDIR(mode):
                yield from _walk(folder, name)
            elif not stat.S_ISREG(mode):
                raise CheckpointError(f"{folder}: {name} is no ordinary file")
            elif str(name) != MANIFEST_FILE:
                yield str(name)


def _entry(path: Path, sync: bool = False) -> dict[str, Any]:
    """Return size and digest of a file; with ``sync`` flush it to the disk first."""
    if sync:
        flush_to_disk(path)
    with open_file(path, follow=False) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": file.tell(), "sha256": digest}


def _in_threads(work: Callable[[str], dict[str, Any]], names: Iterable[str]) -> list[dict[str, Any]]:
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:  # hashing releases the interpreter lock
        return list(pool.map(work, names))


def _read_entry(folder: Path, name: str) -> dict[str, Any]:
    try:
        return _entry(folder / name)
    except OSError as error:
        raise CheckpointError(f"{folder}: {name} cannot be read ({error.strerror})") from error


def _parsed(fields: Any) -> Manifest:
    """Return a manifest from JSON values, or raise a ``ValueError``, ``TypeError`` or ``KeyError``."""
    if fields["format"] != FORMAT:
        raise ValueError(f"format {fields['format']}; this version reads format {FORMAT}")
    manifest = Manifest(**{name: fields[name] for name in Manifest.__dataclass_fields__})
    for name in ("step", "world_size", "pairs_per_step"):
        if type(getattr(manifest, name)) is not int:
            raise TypeError(f"{name} is no number")
    for name in ("files", "versions", "settings", "data", "base"):
        if not isinstance(getattr(manifest, name), Mapping):
            raise TypeError(f"{name} is no object")
    for path, entry in manifest.files.items():
        parts = PurePosixPath(path).parts
        if not parts or PurePosixPath(path).is_absolute() or ".." in parts or "\\" in path or "\0" in path:
            raise ValueError(f"the file name {path!r}")
        if not isinstance(entry["bytes"], int) or not isinstance(entry["sha256"], str):
            raise TypeError(f"the entry of {path!r}")
    return manifest


def _refuse_unsafe(folder: Path, manifest: Manifest, found: Iterable[str]) -> None:
    """Refuse pickles, and files that a loader might read although the manifest does not list them."""
    for name in found:
        path = PurePosixPath(name)
        # Folders inside may be exports of this checkpoint; loaders search them only for adapters.
        is_looked_for = len(path.parts) == 1 or path.name.startswith("adapter_model.")
        if name not in manifest.files and path.suffix in LOADED_SUFFIXES and is_looked_for:
            raise CheckpointError(f"{folder}: {name} was not saved with it; remove it")
        if name in manifest.files and path.suffix in PICKLED_SUFFIXES and manifest.sharded_by is None:
            raise CheckpointError(f"{folder}: {name} is a pickle, which can run code; expected safetensors and JSON")


def reason_of(error: BaseException) -> str:
    """Return the first line of an error's message, or its type where it has none."""
    return (first_line(error) or type(error).__name__)[:200]
