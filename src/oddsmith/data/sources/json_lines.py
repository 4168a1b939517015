"""Hold the rows of large files of JSON Lines by their places in the files: a row is read when it is asked for.

A million pairs take gigabytes as objects of Python, and half a minute to make in one process. Here they take 32 bytes
each, processes that tokenize read their own rows, and a run that finds its tokens in the cache parses none at all. Rows
of other large text files are written as JSON Lines first, into a file without a name.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, overload

from ...errors import DataError
from ...system.files import own_cache
from ...system.outside import open_file
from .decoding import decoded
from .files import Row, parsed_line, plain_json_lines
from .naming import Columns, named_row

if TYPE_CHECKING:
    import numpy as np

MIN_BYTES = 32 * 2**20  # of all files together; the rows of smaller ones are held in memory
CHUNK_BYTES = 16 * 2**20


class JsonLines(Sequence[Row]):
    """The rows of files of JSON Lines, one after the other; blank lines are none.

    A file that is not UTF-8 or not JSON is a ``DataError`` when the row is asked for. The files may be replaced
    meanwhile, but must not be written to.

    Args:
        paths: The files, not compressed.
        files: The same files, where they are open already.
    """

    def __init__(self, paths: Sequence[Path], files: Sequence[Any] | None = None):
        import numpy as np  # here: the help of commands must not wait for it

        self._paths = list(paths)
        self._files = list(files) if files else [open_file(path) for path in paths]
        self._columns: list[Columns] = [{}] * len(self._files)  # of each file: those that are read under other names
        digest, places = hashlib.sha256(), []
        for number, file in enumerate(self._files):
            places.append(np.column_stack(_places(file, digest, number, self._paths[number])))
        self._file_digest = digest.hexdigest()
        self._places = np.concatenate(places)  # of each row: number of the file, first byte, one past the last, line

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, which: int) -> Row: ...
    @overload
    def __getitem__(self, which: slice) -> list[Row]: ...
    def __getitem__(self, which: int | slice) -> Row | list[Row]:
        if isinstance(which, slice):
            return [self._row(place) for place in self._places[which].tolist()]
        return self._row(self._places[which].tolist())

    def __iter__(self) -> Iterator[Row]:
        return map(self._row, (place.tolist() for place in self._places))

    def select(self, numbers: Sequence[int]) -> JsonLines:
        """Return some of the rows, which are not read by that."""
        import numpy as np

        return self._with(_places=self._places[np.asarray(numbers, dtype=np.int64)])

    def named(self, columns: Columns) -> JsonLines:
        """Return the rows with columns under other names, as ``named_row`` makes them."""
        return self._with(_columns=[columns] * len(self._files))

    @classmethod
    def joined(cls, parts: Sequence[JsonLines]) -> JsonLines:
        """Return the rows of several, one after the other."""
        import numpy as np

        places, files = [], 0
        for part in parts:
            places.append(part._places + np.array([files, 0, 0, 0]))
            files += len(part._files)
        return parts[0]._with(
            _paths=[path for part in parts for path in part._paths],
            _files=[file for part in parts for file in part._files],
            _columns=[columns for part in parts for columns in part._columns],
            _file_digest=" ".join(part._file_digest for part in parts),
            _places=np.concatenate(places),
        )

    def _with(self, **changed: Any) -> JsonLines:
        other = object.__new__(JsonLines)
        other.__dict__ = self.__dict__ | changed
        return other

    def digest(self) -> str:
        """Return a digest of the content of the files, of the names of columns, and of which rows these are."""
        digest = hashlib.sha256(json.dumps([self._file_digest, self._columns]).encode())
        digest.update(self._places.tobytes())
        return digest.hexdigest()

    def _row(self, place: list[int]) -> Row:
        number, start, end, line = place
        path = self._paths[number]
        data = os.pread(self._files[number].fileno(), end - start, start)  # leaves the place in the file as it is
        if len(data) < end - start:
            raise DataError(f"{path}, line {line}: the file has become shorter while it was read; start again")
        row = parsed_line(decoded(data, path, start, line).rstrip(), path, line)
        return named_row(row, self._columns[number]) if self._columns[number] else row


def large_rows(paths: Sequence[Path], rows: Iterable[Row]) -> JsonLines | None:
    """Return the rows of text files by their places if the files are large; else None.

    ``rows`` are those of the files, read one after the other.
    """
    if sum(path.stat().st_size for path in paths) < MIN_BYTES:
        return None
    return JsonLines(paths) if all(map(plain_json_lines, paths)) else on_disk(rows, paths[0])


def on_disk(rows: Iterable[Row], path: Path) -> JsonLines | None:
    """Write rows as JSON Lines into a file without a name in the cache; None where that cannot be had, or has no room.

    ``path`` stands for the file in errors.
    """
    try:
        folder = own_cache("tokens")
        if folder is None:
            return None
        file = TemporaryFile(dir=folder)  # noqa: SIM115 - goes with the rows
        file.writelines(json.dumps(row).encode() + b"\n" for row in rows)
        file.seek(0)
    except OSError:
        return None
    return JsonLines([path], [file])


def _places(file: Any, digest: Any, number: int, path: Path) -> tuple[np.ndarray, ...]:
    """Return where the rows of a file lie, as columns, and add its bytes to a digest."""
    import numpy as np

    starts, firsts, size, begins_line = [], [], 0, True
    with ThreadPoolExecutor(1) as hashing:
        while chunk := file.read(CHUNK_BYTES):
            hashed = hashing.submit(digest.update, chunk)
            characters = np.frombuffer(chunk, np.uint8)
            start = np.flatnonzero(characters == ord("\n")) + 1
            start = np.concatenate([[0] * begins_line, start[start < len(chunk)]]).astype(np.int64)
            starts.append(start + size)
            firsts.append(characters[start])
            begins_line = chunk.endswith(b"\n")
            size += len(chunk)
            hashed.result()
    digest.update(size.to_bytes(8, "big"))
    start = np.concatenate([*starts, np.zeros(0, np.int64)])
    end = np.append(start[1:], size)[: len(start)]
    is_row = np.concatenate([*firsts, np.zeros(0, np.uint8)]) == ord("{")
    for line in np.flatnonzero(~is_row).tolist():
        data = os.pread(file.fileno(), int(end[line] - start[line]), int(start[line]))
        is_row[line] = bool(decoded(data, path, int(start[line]), line + 1).strip())
    lines = np.flatnonzero(is_row)
    return np.full(len(lines), number), start[lines], end[lines], lines + 1
