"""Load the rows of one dataset by its name, and the rows that a run trains and evaluates on.

    name                                     rows
    builtin:house-style                      the pairs of the demo, as a list of dicts
    pairs.jsonl  .json  .csv  .xlsx  (.gz)   list of dicts (files.py); of large files their places (json_lines.py)
    pairs.parquet                            datasets.Dataset (tables.py)
    a folder of such files                   those of the split (splits.py)
    a folder made by save_to_disk            datasets.Dataset
    anything else                            datasets.Dataset, from the hub

    when streaming                           datasets.IterableDataset, whatever it is

A single file is one split, by any name; the name of a split may end in a slice: ``train[:100]``.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from ...errors import ConfigError, DataError, RowError
from ...system.words import counted
from ..formats import format_of
from .files import PARQUET, Row, kind_of_file, read_rows, require_path
from .json_lines import JsonLines, large_rows
from .mixture import Share, mix, mix_streams, parse_mixture, shares_of, weights_of
from .naming import Columns, columns_there, named_row, parse_columns, with_names
from .splits import Split, files_of, folder_splits
from .tables import hub_splits, is_saved_dataset, read_hub, read_parquet, read_saved, saved_splits

if TYPE_CHECKING:
    import datasets

    from ...config import ScriptArguments

Rows: TypeAlias = "list[Row] | JsonLines | datasets.Dataset | datasets.IterableDataset"

BUILTIN = "builtin:"
HOUSE_STYLE = "builtin:house-style"
HOUSE_STYLE_SPLITS: dict[str, Literal["train", "heldout"]] = {"train": "train", "test": "heldout", "heldout": "heldout"}
FIRST_ROWS = 100  # of a dataset in a mixture, one of which should have known columns
BATCH_ROWS = 250  # a tenth of a second of work for the checks
HUB_ID = re.compile(r"\w[\w.-]*(?:/[\w.-]+)?")


def load_rows(
    name: str,
    *,
    config: str | None = None,
    split: str = "train",
    streaming: bool = False,
    columns: Any = None,
    where_there: bool = False,
) -> Rows:
    """Load the rows of one dataset, as the table above shows.

    Args:
        name: The name.
        config: Configuration of a hub dataset.
        split: A split, or a slice of one.
        streaming: Read rows as they are needed.
        columns: The setting: columns of other names than those that formats read.
        where_there: Whether a dataset that has none of these columns is read as it is.

    Returns:
        The rows.

    Raises:
        ConfigError: The columns are named wrongly.
        DataError: The dataset is missing, unreadable or empty, or has no such split or columns.
    """
    named = parse_columns(columns)
    rows: Any
    if not is_local(name):
        rows = read_hub(name, config, split, streaming=streaming)
    else:
        part = require_whole(name, split, streaming)
        rows = _local_rows(name, part, streaming)
        if isinstance(rows, FileRows):
            large = None if streaming else large_rows(rows.paths, rows)
            rows = _stream_of(_from_files, rows.paths) if streaming else list(rows) if large is None else large
        if part.is_slice:
            positions = part.rows_of(len(rows))
            rows = rows[positions.start : positions.stop] if isinstance(rows, list) else rows.select(positions)
    if not streaming and not len(rows):
        where = name if split == "train" else f"{name}, split {split!r}"
        raise DataError(f"{where}: the dataset is empty; expected rows with a prompt and two answers")
    if isinstance(rows, JsonLines):
        return rows.named(columns_there(rows, named, name, where_there=where_there))
    return with_names(rows, named, name, where_there=where_there)


def require_whole(name: str, split: str, streaming: bool) -> Split:
    """Return a split; a slice of a stream is a ``DataError``."""
    part = Split.parse(split)
    if part.is_slice and streaming:
        raise DataError(f"{name}: split {split!r} is a slice, but a stream has no length; name a whole split")
    return part


def open_rows(
    name: str,
    *,
    config: str | None = None,
    split: str = "train",
    columns: Any = None,
    where_there: bool = False,
) -> Rows | FileRows:
    """Open the rows of one dataset so that they can be read several times without being held in memory.

    Takes and raises what ``load_rows`` does. Rows of text files are read as they are needed, so that an empty file is
    no error here; a slice of such a file is held in memory.
    """
    part = Split.parse(split)
    if is_local(name) and not part.is_slice:
        rows = _local_rows(name, part, streaming=False)
        if isinstance(rows, FileRows):
            named = columns_there(rows, parse_columns(columns), name, where_there=where_there)
            return FileRows(rows.paths, named)
    return load_rows(name, config=config, split=split, columns=columns, where_there=where_there)


class FileRows:
    """Rows of text files, with their columns under other names; every iteration reads the files again, row by row."""

    def __init__(self, paths: list[Path], columns: Columns | None = None):
        self.paths, self.columns = paths, columns

    def __iter__(self) -> Iterator[Row]:
        rows = _from_files(self.paths)
        return (named_row(row, self.columns) for row in rows) if self.columns else rows


def batches(rows: Rows | FileRows, share: int = 0, shares: int = 1) -> Iterator[tuple[int, list[Any]]]:
    """Yield the number of the first row of each batch of ``BATCH_ROWS``, and its rows as plain Python values.

    Share k of n has the batches k, k + n, k + 2n, ...
    """
    if not isinstance(rows, list | FileRows | JsonLines):
        rows = rows.with_format(None)
    if isinstance(rows, FileRows) or not hasattr(rows, "__len__"):
        stream = iter(rows)
        for number in count():
            batch = list(islice(stream, BATCH_ROWS))
            if not batch:
                return
            if number % shares == share:
                yield number * BATCH_ROWS, batch
    else:
        for start in range(share * BATCH_ROWS, len(rows), shares * BATCH_ROWS):
            part = rows[start : start + BATCH_ROWS]
            yield start, part if isinstance(part, list) else rows_of_columns(part)


def numbered_rows(rows: Rows | FileRows) -> Iterator[tuple[int, Any]]:
    """Read rows one by one, as plain Python values with their numbers."""
    for start, batch in batches(rows):
        yield from enumerate(batch, start)


def rows_of_columns(columns: Mapping[str, Sequence[Any]]) -> list[Row]:
    """Turn a batch of columns, as ``datasets`` gives it, into rows."""
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def is_local(name: str) -> bool:
    """Return whether the name is that of a built-in dataset or a path, rather than of a dataset on the hub."""
    if name.startswith(BUILTIN) or HUB_ID.fullmatch(name) is None:
        return True
    path = Path(name)
    return path.exists() or kind_of_file(path) is not None


class RunRows(NamedTuple):
    """The rows of a run."""

    train: Rows
    evaluation: Rows | dict[str, Rows] | None  # several sets by name; None without any
    shares: list[Share]  # of the datasets in a mixture, before rows are held out; empty where there is none


def load_datasets(arguments: ScriptArguments, *, seed: int, evaluate: bool) -> RunRows:
    """Load the training rows of a run and its evaluation rows.

    The evaluation rows are the first of these that the settings name: ``test_split_size`` of the training rows, drawn
    with the seed (and kept out of training without ``evaluate``, too); ``eval_dataset_name`` (several names, separated
    by commas, are several sets); the split ``dataset_test_split`` of ``dataset_name``.

    Settings that name no dataset, contradict each other, or name nothing to evaluate on raise a ``ConfigError``.
    """
    require_consistent(arguments, evaluate)
    if arguments.test_split_size is not None:
        rows, shares = _training_rows(arguments, seed)
        train, held_out = hold_out(rows, arguments.test_split_size, seed)
        return RunRows(train, held_out if evaluate else None, shares)
    evaluation = _evaluation_rows(arguments) if evaluate else None
    train, shares = _training_rows(arguments, seed)
    return RunRows(train, evaluation, shares)


def has_split(name: str, split: str, config: str | None = None) -> bool:
    """Return whether a dataset has a split, or the one that a slice is of, beside others.

    A single file, or the only split of a saved dataset, is read for any name, and has none. Of a hub dataset a split
    was read before.
    """
    wanted, path = re.split(r"[\[+]", split.strip())[0], Path(name).expanduser()
    if name.startswith(BUILTIN):
        return wanted in HOUSE_STYLE_SPLITS
    if not is_local(name):
        return wanted in hub_splits(name, config)
    if not path.is_dir():
        return False
    return wanted in (saved_splits(path) if is_saved_dataset(path) else folder_splits(path))


def hold_out(rows: Rows, size: float, seed: int) -> tuple[Rows, Rows]:
    """Split rows into those to train on and those to evaluate on, both in their order.

    ``size`` is a share below 1, or a number of rows; of a stream the first so many rows are held out. Another size, or
    one that leaves nothing to train on, raises a ``ConfigError``.
    """
    is_share = 0 < size < 1
    if not isinstance(rows, list | JsonLines) and not hasattr(rows, "__len__"):
        require_size(size, is_stream=True)
        return rows.skip(int(size)), rows.take(int(size))
    require_size(size, is_stream=False)
    count = max(1, round(len(rows) * size)) if is_share else int(size)
    if count >= len(rows):
        found = f"there {'is' if len(rows) == 1 else 'are'} {counted(len(rows), 'row')}"
        raise ConfigError(f"test_split_size is {size:g}, but {found}; leave some to train on")
    held_out = set(random.Random(seed).sample(range(len(rows)), count))
    sides = [row for row in range(len(rows)) if row not in held_out], sorted(held_out)
    train, test = ([rows[row] for row in side] if isinstance(rows, list) else rows.select(side) for side in sides)
    return train, test


def require_size(size: float, *, is_stream: bool) -> None:
    """Refuse a ``test_split_size`` that is neither a share nor a number of rows, and a share of a stream."""
    is_share = 0 < size < 1
    if not is_share and not (size >= 1 and math.isfinite(size) and size == int(size)):
        raise ConfigError(f"test_split_size is {size}; expected a share such as 0.1, or a whole number of rows")
    if is_share and is_stream:
        raise ConfigError(f"test_split_size is {size}, but a stream has no length; give a number of rows")


def _local_rows(name: str, split: Split, streaming: bool) -> Rows | FileRows:
    if name.startswith(BUILTIN):
        rows = _builtin_rows(name, split)
        return _stream_of(_from_memory, tuple(rows)) if streaming else rows
    path = Path(name).expanduser()
    require_path(path)
    if path.is_dir() and is_saved_dataset(path):
        return read_saved(path, split, streaming=streaming)
    paths = files_of(path, split) if path.is_dir() else [path]
    parquet = [file for file in paths if kind_of_file(file) == PARQUET]
    if parquet and len(parquet) < len(paths):
        raise DataError(f"{path}: split {split.name!r} has Parquet beside other files; keep one kind of them")
    return read_parquet(paths, streaming=streaming) if parquet else FileRows(paths)


def _builtin_rows(name: str, split: Split) -> list[Row]:
    from ..builtin import demo_pairs

    if name != HOUSE_STYLE:
        raise DataError(f"no built-in dataset {name!r}; expected {HOUSE_STYLE}")
    if split.name not in HOUSE_STYLE_SPLITS:
        raise DataError(f"{name}: no split {split.name!r}; found train, test")
    return demo_pairs(HOUSE_STYLE_SPLITS[split.name])


def _from_files(source: Iterable[Path]) -> Iterator[Row]:
    for path in source:
        yield from read_rows(path)


def _from_memory(source: Iterable[Row]) -> Iterator[Row]:
    yield from source


def _stream_of(reader: Any, source: Any) -> datasets.IterableDataset:
    """Make a stream; where the source is a list, of files, its items are shards that several processes can share."""
    import datasets

    return datasets.IterableDataset.from_generator(reader, gen_kwargs={"source": source})


def require_consistent(arguments: ScriptArguments, evaluate: bool) -> None:
    """Refuse settings that name no dataset, or nothing to evaluate on, before anything is read."""
    name = arguments.dataset_name
    if not name and not arguments.datasets:
        raise ConfigError("no dataset is given; set dataset_name to a file, folder or hub id, or datasets to a mixture")
    if name and arguments.datasets:
        raise ConfigError("dataset_name and datasets are both given; put all datasets of the mixture into datasets")
    if arguments.test_split_size is not None and arguments.eval_dataset_name:
        raise ConfigError(
            "test_split_size and eval_dataset_name are both given; choose where evaluation rows come from"
        )
    if not evaluate or arguments.test_split_size is not None or arguments.eval_dataset_name:
        return
    advice = "set test_split_size (such as 0.1) or eval_dataset_name, or turn evaluation off with eval_strategy: no"
    if name is None:
        raise ConfigError(f"evaluation is on, but a mixture has no test split; {advice}")
    is_file = not name.startswith(BUILTIN) and Path(name).expanduser().is_file()
    if is_file and not Split.parse(arguments.dataset_test_split).is_slice:
        raise ConfigError(f"evaluation is on, but {name} is a single file and has no test split; {advice}")


def _training_rows(arguments: ScriptArguments, seed: int) -> tuple[Rows, list[Share]]:
    split, streaming = arguments.dataset_train_split, arguments.dataset_streaming
    if arguments.dataset_name:
        rows = load_rows(
            arguments.dataset_name,
            config=arguments.dataset_config,
            split=split,
            streaming=streaming,
            columns=arguments.columns,
        )
        return rows, []
    parts = parse_mixture(arguments.datasets)
    all_rows: list[Any] = [
        load_rows(
            part.path,
            config=part.name,
            split=part.split or split,
            streaming=streaming,
            columns=part.columns or arguments.columns,
            where_there=not part.columns,
        )
        for part in parts
    ]
    for number, (part, rows) in enumerate(zip(parts, all_rows, strict=True)):
        require_known_columns(rows, f"datasets[{number}] ({part.path})")
    shares = shares_of(parts, None if streaming else list(map(len, all_rows)))
    return (mix_streams if streaming else mix)(all_rows, weights_of(parts), seed), shares


def require_known_columns(rows: Rows, where: str) -> None:
    """Name the dataset of a mixture of which no format knows the columns; in the mixture, rows alone would be named."""
    problem: DataError | None = None
    for row in islice(rows, FIRST_ROWS):
        try:
            format_of(row)
            return
        except RowError:
            return  # known columns, a fault in them
        except DataError as error:
            problem = problem or error
    if problem is not None:
        raise DataError(f"{where}: {problem}")


def names_in(given: str) -> list[str]:
    """Return the datasets of ``eval_dataset_name``: what lies there by that name, or names with commas between them."""
    return [given] if Path(given).exists() else [name.strip() for name in given.split(",") if name.strip()]


def _evaluation_rows(arguments: ScriptArguments) -> Rows | dict[str, Rows]:
    sets = {}
    for name in names_in(arguments.eval_dataset_name or arguments.dataset_name or ""):
        config = arguments.dataset_config if name == arguments.dataset_name else None
        rows = load_rows(
            name,
            config=config,
            split=arguments.dataset_test_split,
            streaming=arguments.dataset_streaming,
            columns=arguments.columns,
            where_there=arguments.eval_dataset_name is not None,
        )
        short = Path(name).name.split(".")[0]
        sets[name if short in sets else short] = rows
    return sets if len(sets) > 1 else next(iter(sets.values()))
