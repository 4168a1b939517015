"""``manifest.json``: what makes a folder a checkpoint. Needs no torch.

    begin    the folder, with an empty ``manifest.json.partial`` in it: a save that is not finished
    ...      every process writes its files
    commit   every file reaches the disk; then the manifest, renamed into place; then the folder itself

The files are written where they stay: a folder that is renamed while other processes write into it loses files. A
process that is killed at any moment leaves either a whole checkpoint or one that says that it was never finished.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import CheckpointError
from ..system.files import flush_to_disk
from ..system.run_folder import MANIFEST_FILE
from ..system.strict_json import read_json, strict

UNFINISHED = f"{MANIFEST_FILE}.partial"
FORMAT = 1
MOST_BYTES = 16 * 2**20
MOST_DEPTH = 32
CHUNK_BYTES = 2**20
# What a loader might pick up although nobody vouches for it: weights, pickles, code.
LOADED_SUFFIXES = frozenset(
    {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".msgpack", ".h5", ".py"}
)
PICKLED_SUFFIXES = LOADED_SUFFIXES - {".safetensors", ".py"}


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint holds, and of which run it is.

    Args:
        step: Optimizer steps done.
        files: Path within the checkpoint -> ``{"bytes": size, "sha256": digest}``.
        world_size: Processes of the run that saved it.
        pairs_per_step: Pairs of one of its optimizer steps.
        sharded_by: ``"FSDP"`` or ``"DeepSpeed"``, which write files of their own; ``None`` for files that hold no code.
        versions: Package -> version.
        settings: The settings that decide on the result.
        data: Name of a dataset -> ``{"sha256": of its tokens, "pairs": number}``.
        base: Files and commit of the base model.
    """

    step: int
    files: dict[str, dict[str, Any]]
    world_size: int = 1
    pairs_per_step: int = 0
    sharded_by: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    data: dict[str, dict[str, Any]] = field(default_factory=dict)
    base: dict[str, Any] = field(default_factory=dict)


def begin(folder: Path) -> None:
    """Make the folder of a save, marked as not finished.

    Args:
        folder: ``RUN/checkpoint-STEP``, which is not there yet.

    Raises:
        FileExistsError: It is.
    """
    folder.mkdir(parents=True)
    (folder / UNFINISHED).touch()


def commit(folder: Path, **facts: Any) -> Manifest:
    """Make a folder a checkpoint: bring all its files to the disk, then its manifest.

    Args:
        folder: The folder; all processes have written their files.
        **facts: Fields of ``Manifest``, without ``files``.

    Returns:
        The manifest.

    Raises:
        OSError: The disk is full, or the like.
    """
    names = [name for name in files_in(folder) if name != UNFINISHED]
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:  # hashing lets go of the interpreter
        entries = list(pool.map(lambda name: _entry(folder / name, sync=True), names))
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
    """Make a checkpoint an unfinished one before it is removed: a removal that is cut off leaves no half one."""
    if (folder / MANIFEST_FILE).is_file():
        os.replace(folder / MANIFEST_FILE, folder / UNFINISHED)


def verify(folder: Path, *, contents: bool = True) -> Manifest:
    """Read the manifest of a checkpoint and compare every file with it.

    Args:
        folder: The checkpoint.
        contents: Whether to read every file; otherwise only sizes are compared.

    Returns:
        The manifest.

    Raises:
        CheckpointError: The folder is none, or not as it was written; the message says how.
    """
    if folder.is_symlink():
        raise CheckpointError(f"{folder}: is a symbolic link; expected the checkpoint itself")
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such checkpoint; expected a folder such as RUN/checkpoint-100")
    manifest = read_manifest(folder)
    found = dict.fromkeys(files_in(folder))
    missing = [name for name in manifest.files if name not in found]
    if missing:
        raise CheckpointError(f"{folder}: {missing[0]} is missing{_and_more(missing)}")
    _refuse_strangers(folder, manifest, list(found))
    for name, entry in manifest.files.items():
        size = (folder / name).stat().st_size
        if size != entry["bytes"]:
            raise CheckpointError(f"{folder}: {name} has {size:,} bytes; {entry['bytes']:,} were written")
    if contents:
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            entries = pool.map(lambda name: _read_entry(folder, name), manifest.files)
            for (name, entry), present in zip(manifest.files.items(), entries, strict=True):
                if present["sha256"] != entry["sha256"]:
                    raise CheckpointError(f"{folder}: {name} is damaged (its SHA-256 is not the one that was written)")
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint; its files are not looked at.

    Args:
        folder: The checkpoint.

    Returns:
        The manifest.

    Raises:
        CheckpointError: There is none, or it is none.
    """
    path = folder / MANIFEST_FILE
    try:
        if path.is_symlink():
            raise CheckpointError(f"{folder}: {MANIFEST_FILE} is a symbolic link; expected the file itself")
        if not stat.S_ISREG(path.lstat().st_mode):  # a pipe would keep its reader waiting
            raise CheckpointError(f"{folder}: {MANIFEST_FILE} is no ordinary file")
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        unfinished = (folder / UNFINISHED).exists()
        why = (
            "its save was never finished"
            if unfinished
            else f"it has no {MANIFEST_FILE}, so nothing vouches for its files"
        )
        raise CheckpointError(f"{folder}: is no checkpoint: {why}") from None
    except OSError as error:
        raise CheckpointError(f"{folder}: {MANIFEST_FILE} cannot be read ({error.strerror})") from error
    if len(data) > MOST_BYTES:
        raise CheckpointError(f"{folder}: {MANIFEST_FILE} is larger than {MOST_BYTES:,} bytes")
    try:
        return _parsed(read_json(data.decode()))
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{folder}: {MANIFEST_FILE} is damaged ({_first_line(error)})") from None


def is_unfinished(folder: Path) -> bool:
    """Whether a folder is a save of ours that was cut off: it never was a checkpoint."""
    return (folder / UNFINISHED).is_file() and not (folder / MANIFEST_FILE).exists()


def files_in(folder: Path) -> Iterator[str]:
    """The files of a checkpoint but its manifest, as ``a/b``, sorted.

    Args:
        folder: The checkpoint.

    Yields:
        str: Their names within it.

    Raises:
        CheckpointError: One is a symbolic link or no ordinary file, or folders lie too deep in each other.
    """
    yield from sorted(_walk(folder, PurePosixPath()))


def _walk(folder: Path, inner: PurePosixPath) -> Iterator[str]:
    if len(inner.parts) > MOST_DEPTH:
        raise CheckpointError(f"{folder}: folders lie more than {MOST_DEPTH} deep in each other")
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
    """Size and digest of a file, which reaches the disk first if ``sync``."""
    digest = hashlib.sha256()
    if sync:
        flush_to_disk(path)
    with path.open("rb") as file:
        size = 0
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _read_entry(folder: Path, name: str) -> dict[str, Any]:
    try:
        return _entry(folder / name)
    except OSError as error:
        raise CheckpointError(f"{folder}: {name} cannot be read ({error.strerror})") from error


def _parsed(fields: Any) -> Manifest:
    """The manifest out of JSON; a ``ValueError``, ``TypeError`` or ``KeyError`` where it is none."""
    if fields["format"] != FORMAT:
        raise ValueError(f"format {fields['format']}; this version reads format {FORMAT}")
    manifest = Manifest(**{name: fields[name] for name in Manifest.__dataclass_fields__})
    for name, kind in (("step", int), ("world_size", int), ("pairs_per_step", int)):
        if not isinstance(getattr(manifest, name), kind) or isinstance(getattr(manifest, name), bool):
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


def _refuse_strangers(folder: Path, manifest: Manifest, found: list[str]) -> None:
    """Refuse files that a loader might read although they were not saved here, and pickles."""
    for name in found:
        path = PurePosixPath(name)
        # Deeper down there may be exports of this checkpoint; only adapters are looked for there.
        is_looked_for = len(path.parts) == 1 or path.name.startswith("adapter_model.")
        if name not in manifest.files and path.suffix in LOADED_SUFFIXES and is_looked_for:
            raise CheckpointError(f"{folder}: {name} was not saved with it; remove it")
        if name in manifest.files and path.suffix in PICKLED_SUFFIXES and manifest.sharded_by is None:
            raise CheckpointError(f"{folder}: {name} is a pickle, which can run code; expected safetensors and JSON")


def _and_more(names: list[str]) -> str:
    return f", and {len(names) - 1} more" if len(names) > 1 else ""


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
