"""Read rows that have a common schema with ``datasets``: Parquet files, folders of ``save_to_disk``, hub datasets.

Every file is inspected before it is read (inspection.py): the given ones, and those that ``datasets`` has made of them
and keeps. What it makes of Parquet files is kept apart from what others may have put into its cache:

    HF_DATASETS_CACHE/oddsmith-UID/      a folder that only this user can write

Errors of ``datasets`` are shortened to one line. It is imported on use, so that reading a text file does not wait for
the import.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ...errors import DataError, OddsmithError
from ...system.files import free_bytes, in_units, private_folder
from ...system.outside import read_text, require_file
from ...system.strict_json import read_object
from ..inspection import Kind, require_sound
from .splits import Split

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

Table: TypeAlias = "datasets.Dataset | datasets.IterableDataset"

# What a library raises for metadata of another shape than its own.
_OF_ANOTHER_SHAPE = (KeyError, TypeError, AttributeError, IndexError)


def is_saved_dataset(folder: Path) -> bool:
    """Return whether ``datasets`` wrote this folder with ``save_to_disk``: of one split, or of several."""
    return any((folder / name).exists() for name in ("state.json", "dataset_dict.json"))


def read_parquet(paths: list[Path], *, streaming: bool) -> Table:
    """Read Parquet files one after the other; a ``DataError`` names a damaged file, or files of different schemas."""
    import datasets

    names = [str(path) for path in paths]

    def builder(folder: str | None) -> Any:
        return datasets.load_dataset_builder("parquet", data_files={"rows": names}, cache_dir=folder)

    with _one_line_errors(", ".join(names), "expected Parquet files of one schema"):
        for path in paths:
            require_file(path)
        if streaming:
            require_sound(paths, "parquet")
            return builder(None).as_streaming_dataset("rows")
        folder = _cache_of_tables()
        try:
            made = builder(folder)
        except (ValueError, *_OF_ANOTHER_SHAPE) as error:  # nothing but what is kept has been read
            logger.warning("%s: damaged (%s); Parquet files are read anew", folder, _in_one_line(error))
            shutil.rmtree(Path(folder) / "parquet", ignore_errors=True)
            made = builder(folder)
        return _built(made, "rows", lambda: require_sound(paths, "parquet"))


def _built(builder: Any, split: str, inspect: Callable[[], int]) -> datasets.Dataset:
    """Return a split of what a builder of ``datasets`` keeps, made anew where nothing is kept or it is damaged.

    ``inspect`` looks at the files that it is made of, and returns how many bytes they unpack to.
    """
    import datasets

    folder, mode = Path(builder.cache_dir), datasets.DownloadMode.REUSE_DATASET_IF_EXISTS
    kept = sorted(folder.glob("*.arrow"))
    if kept:
        try:
            require_sound(kept, "arrow")
        except (DataError, OSError) as error:
            logger.warning("%s, in the cache: its rows are read anew", error)
            kept, mode = [], datasets.DownloadMode.REUSE_CACHE_IF_EXISTS
    if not kept:
        needed_bytes, there_bytes = inspect(), free_bytes(folder)
        if needed_bytes > there_bytes:
            raise DataError(
                f"{folder}: {in_units(needed_bytes)} of rows do not fit in the {in_units(there_bytes)} that are free;"
                " name another folder with HF_DATASETS_CACHE, or set dataset_streaming"
            )
    builder.download_and_prepare(download_mode=mode)
    return builder.as_dataset(split)


def _cache_of_tables() -> str:
    """Return a folder for what is made of Parquet files, that nobody else can have written."""
    from datasets.config import HF_DATASETS_CACHE

    folder = Path(HF_DATASETS_CACHE) / f"oddsmith-{os.geteuid()}"
    try:
        if private_folder(folder):
            return str(folder)
        found = "may be written by others"
    except OSError as error:
        found = error.strerror or str(error)
    other = _temporary_folder().name
    logger.warning("%s: %s; %s is used for this run", folder, found, other)
    return other


@cache
def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """Make a folder that is removed at the end of the process."""
    return tempfile.TemporaryDirectory(prefix="oddsmith-")


def read_saved(folder: Path, split: Split, *, streaming: bool) -> Table:
    """Read a split of what ``save_to_disk`` wrote, without its slice; the only split of a folder has any name.

    A damaged folder, or one without the split, is a ``DataError``.
    """
    import datasets

    place, splits = folder, saved_splits(folder)
    if splits:
        if split.name not in splits:
            raise DataError(f"{folder}: no split {split.name!r}; found {', '.join(splits)}")
        place = folder / split.name
    files = _names_in(place / "state.json", lambda value: [entry["filename"] for entry in value["_data_files"]])
    with _one_line_errors(str(folder), "expected a folder made by save_to_disk"):
        require_sound([place / name for name in files], "arrow")
        saved = datasets.load_from_disk(str(place))
    return saved.to_iterable_dataset() if streaming else saved


def saved_splits(folder: Path) -> list[str]:
    """Return the names of the splits in a folder that ``save_to_disk`` wrote; empty where there is only one."""
    file = folder / "dataset_dict.json"
    return _names_in(file, lambda value: value["splits"]) if file.is_file() else []


def _names_in(file: Path, names_of: Callable[[Any], Any]) -> list[str]:
    """Return names of files or folders beside a JSON file, which it holds; other content is a ``DataError``."""
    try:
        names = names_of(read_object(read_text(file)))
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error
    except (ValueError, *_OF_ANOTHER_SHAPE) as error:
        raise DataError(f"{file}: not what save_to_disk writes; save the dataset again") from error
    if not isinstance(names, list) or not all(map(_is_plain_name, names)):
        raise DataError(f"{file}: names files outside of its folder; save the dataset again")
    return names


def _is_plain_name(name: Any) -> bool:
    return isinstance(name, str) and Path(name).name == name and name != ".."


def read_hub(name: str, config: str | None, split: str, *, streaming: bool) -> Table:
    """Read a split of a hub dataset, from the hub or from the cache.

    ``split`` may be all that ``datasets.load_dataset`` reads: slices and sums. A hub that cannot be reached, or has no
    such dataset, configuration or split, is a ``DataError``.
    """
    import datasets
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    if name in _PACKAGED_DATASETS_MODULES:  # would read whatever files lie in the working folder, pickles among them
        raise DataError(f"dataset {name!r} is a reader of the datasets library and no dataset; name the file or folder")
    what = " ".join(part for part in (repr(name), config and f"configuration {config!r}", f"split {split!r}") if part)
    advice = "check the name, or give a local file (JSONL, JSON, CSV, Parquet) or folder instead"
    with _one_line_errors(f"dataset {what}: no file or folder of this name, and not loaded from the hub", advice):
        if streaming:
            return datasets.load_dataset(name, config, split=split, streaming=True)
        builder = datasets.load_dataset_builder(name, config)
        return _built(builder, split, lambda: _inspected_downloads(builder))


def hub_splits(name: str, config: str | None) -> list[str]:
    """Return the splits of a hub dataset of which one was read before; errors are those of ``read_hub``."""
    import datasets

    with _one_line_errors(f"dataset {name!r}: its splits are not known", "name one with dataset_test_split"):
        return list(datasets.load_dataset_builder(name, config).info.splits or ())


def _inspected_downloads(builder: Any) -> int:
    """Download the files of a hub dataset, and inspect those that Arrow reads; return how much these unpack to."""
    from datasets import DownloadManager

    files = builder.config.data_files or {}
    manager = DownloadManager(dataset_name=builder.dataset_name, base_path=builder.base_path)
    total_bytes = 0
    kinds: tuple[Kind, ...] = ("parquet", "arrow")
    for kind in kinds:
        urls = [str(url) for of_split in files.values() for url in of_split if str(url).lower().endswith(f".{kind}")]
        paths = [Path(path) for path in manager.download(urls)] if urls else []
        if paths:
            total_bytes += require_sound(paths, kind)
    return total_bytes


@contextmanager
def _one_line_errors(where: str, advice: str) -> Iterator[None]:
    """Turn errors of ``datasets`` and Arrow into a ``DataError`` of one line."""
    from datasets.exceptions import DatasetsError
    from pyarrow import ArrowException

    try:
        yield
    except OddsmithError:
        raise
    except ConnectionError as error:
        offline = os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE")
        found = f"no connection ({_in_one_line(error)})"
        if offline:
            found = "HF_HUB_OFFLINE is set, and it is not in the cache"
        raise DataError(f"{where}: {found}; {advice}") from error
    except (DatasetsError, ArrowException, OSError, ValueError, RuntimeError, *_OF_ANOTHER_SHAPE) as error:
        raise DataError(f"{where}: {_in_one_line(error)}; {advice}") from error


def _in_one_line(error: Exception) -> str:
    """Return the first two lines of an error as one; of a bare "an error occurred" those of its cause."""
    from datasets.exceptions import DatasetGenerationError

    cause = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ else error
    text = " ".join(line.strip() for line in str(cause).splitlines()[:2] if line.strip())
    return (text or type(cause).__name__).rstrip(".")[:300]
