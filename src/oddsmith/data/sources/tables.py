"""Tables: rows with a common schema, read by ``datasets``: Parquet files, saved datasets, the hub.

What goes wrong there is said again in a line or two. ``datasets`` is imported on use: a text file should not wait
for it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ...errors import DataError
from .splits import Split

if TYPE_CHECKING:
    import datasets

Table: TypeAlias = "datasets.Dataset | datasets.IterableDataset"

# Written by save_to_disk: for one split, and for several.
SAVED_SPLIT, SAVED_SPLITS = "state.json", "dataset_dict.json"


def is_saved_dataset(folder: Path) -> bool:
    """Whether ``datasets`` wrote this folder with ``save_to_disk``."""
    return any((folder / name).is_file() for name in (SAVED_SPLIT, SAVED_SPLITS))


def read_parquet(paths: list[Path], *, streaming: bool) -> Table:
    """The rows of Parquet files of one schema, one file after the other.

    Args:
        paths: The files.
        streaming: Read rows as they are needed.

    Returns:
        The rows.

    Raises:
        DataError: A file is damaged, or the schemas differ.
    """
    import datasets
    from pyarrow.parquet import read_schema

    for path in paths:  # datasets would name all files where one is damaged, and log it besides
        with _said_plainly(str(path), "write the file again"):
            read_schema(path)
    names = [str(path) for path in paths]
    with _said_plainly(", ".join(names), "expected Parquet files of one schema"):
        return datasets.load_dataset("parquet", data_files={"rows": names}, split="rows", streaming=streaming)


def read_saved(folder: Path, split: Split, *, streaming: bool) -> Table:
    """A split of what ``save_to_disk`` wrote; a folder of a single split is that split, whatever its name.

    Args:
        folder: The folder.
        split: The split; slices are the caller's.
        streaming: Read rows as they are needed.

    Returns:
        The rows of the split.

    Raises:
        DataError: The folder is damaged or has no such split.
    """
    import datasets

    with _said_plainly(str(folder), "expected a folder made by save_to_disk"):
        saved = datasets.load_from_disk(str(folder))
    if isinstance(saved, datasets.DatasetDict):
        if split.name not in saved:
            raise DataError(f"{folder}: no split {split.name!r}; found {', '.join(saved)}")
        saved = saved[split.name]
    return saved.to_iterable_dataset() if streaming else saved


def read_hub(name: str, config: str | None, split: str, *, streaming: bool) -> Table:
    """A split of a dataset on the hub, or of its copy in the cache.

    Args:
        name: Id of the dataset.
        config: One of its configurations.
        split: One of its splits, as ``datasets.load_dataset`` reads it: slices and sums are fine.
        streaming: Read rows as they are needed.

    Returns:
        The rows of the split.

    Raises:
        DataError: The hub cannot be reached, or has no such dataset, configuration or split.
    """
    import datasets
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    if name in _PACKAGED_DATASETS_MODULES:  # would read whatever files lie in the working folder, pickles among them
        raise DataError(f"dataset {name!r} is a reader of the datasets library and no dataset; name the file or folder")
    what = " ".join(part for part in (repr(name), config and f"configuration {config!r}", f"split {split!r}") if part)
    advice = "check the name, or give a local file (JSONL, JSON, CSV, Parquet) or folder instead"
    with _said_plainly(f"dataset {what}: no file or folder of this name, and not loaded from the hub", advice):
        return datasets.load_dataset(name, config, split=split, streaming=streaming)


@contextmanager
def _said_plainly(where: str, advice: str) -> Iterator[None]:
    from datasets.exceptions import DatasetsError
    from pyarrow import ArrowException

    try:
        yield
    except ConnectionError as error:
        offline = os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE")
        found = (
            "HF_HUB_OFFLINE is set, and it is not in the cache" if offline else f"no connection ({_in_a_line(error)})"
        )
        raise DataError(f"{where}: {found}; {advice}") from error
    except (DatasetsError, ArrowException, OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{where}: {_in_a_line(error)}; {advice}") from error


def _in_a_line(error: Exception) -> str:
    """What an error says, in one line; a bare "an error occurred" gives way to its cause."""
    from datasets.exceptions import DatasetGenerationError

    cause = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ else error
    text = " ".join(line.strip() for line in str(cause).splitlines()[:2] if line.strip())
    return (text or type(cause).__name__).rstrip(".")[:300]
