"""Look at the datasets of a run before anything slow is imported: are they there, and does a format know their columns?

Only the first rows are read, and only of what lies on this machine: text files, Parquet files, built-in datasets. What
is found wrong is raised in the words of the run, which reads all rows later; what cannot be seen here it finds then.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import DataError
from ..formats.recognised import FORMAT_ROWS, recognised_format
from ..inspection import require_sound
from .files import JSON_LINES, PARQUET, kind_of_file, require_path
from .loading import (
    BUILTIN,
    is_local,
    names_in,
    numbered_rows,
    open_rows,
    require_consistent,
    require_known_columns,
    require_size,
    require_whole,
)
from .mixture import parse_mixture
from .naming import columns_there, named_row, parse_columns
from .splits import Split, files_of
from .tables import is_saved_dataset

if TYPE_CHECKING:
    from ...config import ScriptArguments

READ_BY_LINES = (*JSON_LINES, ".csv", ".tsv", ".txt")
LARGEST_BYTES = 5_000_000  # of a file that has to be read whole to see its first row: a tenth of a second
LARGEST_TABLE_BYTES = 50_000_000  # of a Parquet file, which another process inspects to its end


def look_at_datasets(arguments: ScriptArguments, *, evaluate: bool, bad_rows: str) -> None:
    """Raise ``ConfigError`` or ``DataError`` where the first rows show that a run could not use its datasets.

    Args:
        arguments: The settings of the data.
        evaluate: Whether the run evaluates.
        bad_rows: The setting: with ``"error"`` the very first row has to be of a known format.
    """
    require_consistent(arguments, evaluate)
    columns, streaming = arguments.columns, arguments.dataset_streaming
    if arguments.dataset_name:
        split = arguments.dataset_train_split
        if is_local(arguments.dataset_name):
            require_whole(arguments.dataset_name, split, streaming)
        look_at_rows(arguments.dataset_name, split, columns, "train", bad_rows)
    else:
        for number, part in enumerate(parse_mixture(arguments.datasets)):
            where = f"datasets[{number}] ({part.path})"
            split = part.split or arguments.dataset_train_split
            look_at_rows(part.path, split, part.columns or columns, where, None, where_there=not part.columns)
    if arguments.test_split_size is not None:
        require_size(arguments.test_split_size, is_stream=streaming)
    given = arguments.eval_dataset_name
    if not evaluate or given is None or arguments.test_split_size is not None:
        return
    names = names_in(given)
    for name in names:
        source = "eval" if len(names) == 1 else Path(name).name.split(".")[0]
        look_at_rows(name, arguments.dataset_test_split, columns, source, bad_rows, where_there=True)


def look_at_rows(
    name: str, split: str, columns: Any, source: str, bad_rows: str | None, *, where_there: bool = False
) -> None:
    """Look at the first rows of one dataset.

    Args:
        name: The dataset.
        split: Its split.
        columns: The setting.
        source: What messages call it.
        bad_rows: The setting; ``None`` for a part of a mixture, of which one of the first rows has to have known
            columns.
        where_there: Whether a dataset that has none of the columns is read as it is.
    """
    parse_columns(columns)
    if not is_local(name):
        return
    rows = _first_rows(name, Split.parse(split), columns, where_there)
    if rows is None:
        return
    if not rows:
        raise DataError(f"{_whole(name, split)}: the dataset is empty; expected rows with a prompt and two answers")
    if bad_rows is not None:
        recognised_format(rows, source, bad_rows)
    else:
        require_known_columns(rows, source)


def _whole(name: str, split: str) -> str:
    return name if split == "train" else f"{name}, split {split!r}"


def _first_rows(name: str, split: Split, columns: Any, where_there: bool) -> list[Any] | None:
    """Return the first rows; ``None`` where they cannot be read quickly, or are not the first of the split."""
    if not name.startswith(BUILTIN):
        path = Path(name).expanduser()
        require_path(path)
        if path.is_dir() and is_saved_dataset(path):
            return None
        paths = files_of(path, split) if path.is_dir() else [path]
        if not all(map(_is_quick, paths)):
            return None
        if split.is_slice:
            return None
        if all(kind_of_file(file) == PARQUET for file in paths):
            return _rows_of_tables(name, paths, columns, where_there)
    elif split.is_slice:
        return None
    opened = open_rows(name, split=split.name, columns=columns, where_there=where_there)
    return [row for _, row in islice(numbered_rows(opened), FORMAT_ROWS)]


def _rows_of_tables(name: str, paths: list[Path], columns: Any, where_there: bool) -> list[Any]:
    """Return the first rows of Parquet files, without the library ``datasets``, which imports torch."""
    from pyarrow.parquet import ParquetFile

    require_sound(paths, "parquet")  # by another process: only then it is safe to read them in this one
    with ParquetFile(paths[0]) as file:
        rows: list[Any] = next((batch.to_pylist() for batch in file.iter_batches(batch_size=FORMAT_ROWS)), [])
    named = columns_there(rows, parse_columns(columns), name, where_there=where_there)
    return [named_row(row, named) for row in rows]


def _is_quick(path: Path) -> bool:
    kind, size_bytes = kind_of_file(path), path.stat().st_size
    if kind == PARQUET:
        return size_bytes <= LARGEST_TABLE_BYTES
    is_read_by_lines = kind in READ_BY_LINES and path.suffix.lower() != ".gz"
    return is_read_by_lines or size_bytes <= LARGEST_BYTES
