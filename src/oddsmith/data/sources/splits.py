"""Find the part of a dataset that ``train``, ``test[:100]`` or ``train[10%:]`` names, and the files that hold it.

The split of a file follows from its name, as on the hub:

    train-00000-of-00003.parquet    train       a shard: the text before the number
    test_prefs.jsonl                test_prefs  the whole name, and also test
    data/valid/part1.csv            validation  a word of the name, or of the folder it is in
    pairs.jsonl                     train       where no file of the folder names a split

Source: the repository structure that ``datasets`` documents.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import DataError
from .files import kind_of_file

WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation", "heldout"),
}
SHARD = re.compile(r"(.+?)-\d{5}-of-\d{5}(?:-\w+)?")
SPLIT = re.compile(r"(?P<name>\w[\w.-]*)(?:\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")

# Files in a folder of data that have a suffix of data.
NOT_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json")


@dataclass(frozen=True)
class Split:
    """A named part of a dataset, or a slice of it."""

    name: str
    # The slice: a row number, a share such as ``"10%"``, or None; negative ones count from the end
    start: str | None = None
    stop: str | None = None

    @classmethod
    def parse(cls, text: str) -> Split:
        """Parse ``name`` or ``name[start:stop]``; anything else is a ``DataError``."""
        match = SPLIT.fullmatch(text.strip())
        if match is None:
            raise DataError(
                f"split {text!r} is not understood; expected a name such as train, train[:100] or train[10%:]"
            )
        return cls(match["name"], match["start"], match["stop"])

    @property
    def is_slice(self) -> bool:
        """Return whether only some rows of the named part are meant."""
        return self.start is not None or self.stop is not None

    def rows_of(self, total: int) -> range:
        """Return the row numbers of the slice among ``total`` rows; shares are rounded to whole rows."""
        return range(total)[slice(*(_position(bound, total) for bound in (self.start, self.stop)))]


def _position(bound: str | None, total: int) -> int | None:
    if bound is None:
        return None
    return round(total * int(bound[:-1]) / 100) if bound.endswith("%") else int(bound)


def files_of(folder: Path, split: Split) -> list[Path]:
    """Return the data files of a folder and its subfolders that hold a split, sorted by path and at least one.

    A folder without data, or without such a split, is a ``DataError``.
    """
    splits = folder_splits(folder)
    if split.name not in splits:
        raise DataError(f"{folder}: no split {split.name!r}; found {', '.join(sorted(splits))}")
    return splits[split.name]


def folder_splits(folder: Path) -> dict[str, list[Path]]:
    """Return the data files of a folder and its subfolders by the split that they hold, sorted by path.

    Hidden files and folders are left out. A folder without data is a ``DataError``.
    """
    paths = [
        path
        for path in sorted(folder.rglob("*"))
        if not path.is_dir() and kind_of_file(path) not in (None, ".txt") and path.name not in NOT_DATA
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not paths:
        raise DataError(
            f"{folder}: the folder holds no file of rows; expected .jsonl, .json, .csv, .tsv, .xlsx or .parquet"
        )
    splits: dict[str, list[Path]] = {}
    for path in paths:
        for name in _split_names(path.relative_to(folder)):
            splits.setdefault(name, []).append(path)
    return splits or {"train": paths}


def _split_names(path: Path) -> Sequence[str]:
    """Return every name of the split that a file belongs to; none where its path names no split."""
    stem = Path(path.name.removesuffix(".gz")).stem
    shard = SHARD.fullmatch(stem)
    if shard:
        return (shard[1],)
    for part in (stem, *reversed(path.parts[:-1])):
        words = re.split(r"[^a-z0-9]+", part.lower())
        for name, spellings in WORDS.items():
            if any(word in spellings for word in words):
                return tuple(dict.fromkeys((name, stem)))
    return ()
