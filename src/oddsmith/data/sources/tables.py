"""Read rows that have a common schema with ``datasets``: Parquet files, folders of ``save_to_disk``, hub datasets.

Errors of ``datasets`` are shortened to one line. It is imported on use, so that reading a text file does not wait for
the import.
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


def is_saved_dataset(folder: Path) -> bool:
    """Return whether ``datasets`` wrote this folder with ``save_to_disk``: of one split, or of several."""
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def read_parquet(paths: list[Path], *, streaming: bool) -> Table:
    """Read Parquet files one after the other; a ``DataError`` names a damaged file, or files of different schemas."""
    import datasets
    from pyarrow.parquet import read_schema

    for path in paths:  # datasets would name all files where one is damaged, and log the error
        with _one_line_errors(str(path), "write the file again"):
            read_schema(path)
    names = [str(path) for path in paths]
    with _one_line_errors(", ".join(names), "expected Parquet files of one schema"):
        return datasets.load_dataset("parquet", data_files={"rows": names}, split="rows", streaming=streaming)


def read_saved(folder: Path, split: Split, *, streaming: bool) -> Table:
    """Read a split of what ``save_to_disk`` wrote, without its slice; the only split of a folder has any name.

    A damaged folder, or one without the split, is a ``DataError``.
    """
    import datasets

    with _one_line_errors(str(folder), "expected a folder made by save_to_disk"):
        saved = datasets.load_from_disk(str(folder))
    if isinstance(saved, datasets.DatasetDict):
        if split.name not in saved:
            raise DataError(f"{folder}: no split {split.name!r}; found {', '.join(saved)}")
        saved = saved[split.name]
    return saved.to_iterable_dataset() if streaming else saved


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
        return datasets.load_dataset(name, config, split=split, streaming=streaming)


@contextmanager
def _one_line_errors(where: str, advice: str) -> Iterator[None]:
    """Turn errors of ``datasets`` and Arrow into a ``DataError`` of one line."""
    from datasets.exceptions import DatasetsError
    from pyarrow import ArrowException

    try:
        yield
    except ConnectionError as error:
        offline = os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE")
        found = f"no connection ({_in_one_line(error)})"
        if offline:
            found = "HF_HUB_OFFLINE is set, and it is not in the cache"
        raise DataError(f"{where}: {found}; {advice}") from error
    except (DatasetsError, ArrowException, OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{where}: {_in_one_line(error)}; {advice}") from error


def _in_one_line(error: Exception) -> str:
    """Return the first two lines of an error as one; of a bare "an error occurred" those of its cause."""
    from datasets.exceptions import DatasetGenerationError

    cause = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ else error
    text = " ".join(line.strip() for line in str(cause).splitlines()[:2] if line.strip())
    return (text or type(cause).__name__).rstrip(".")[:300]
