"""Read Arrow and Parquet files and spreadsheets once, to the end, in another process, before this process reads them.

    python -P -m oddsmith.data.inspection       stdin: {"kind": "arrow", "files": [...]}
                                                stdout, a line of JSON each: a file that is begun; then the result

Arrow trusts its files: an offset beyond the end of a buffer is found when a value is read, as a crash of the process.
Parquet can repeat a value of megabytes a million times in a few bytes, and one cell in the last row and column of a
sheet takes all cells before it. So everything is validated and counted, with a limit to the memory, and a process that
dies has found a damaged file.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ..errors import DataError
from ..system.outside import require_file
from ..system.own_processes import run_module
from .bounds import require_columns, too_much, unpacked_limit_bytes

if TYPE_CHECKING:
    import pyarrow as pa

Kind: TypeAlias = Literal["arrow", "parquet", "spreadsheet"]

BATCH_ROWS = 1_000  # of a Parquet file, at a time
VALUE_BYTES = 8  # of a value in Python, at least; a list of nulls takes nothing in Arrow
OTHER_MEMORY_BYTES = 2**30  # libraries, stacks and arenas: addresses, most of which are never used


def require_sound(paths: Sequence[Path], kind: Kind) -> int:
    """Read files to the end in another process, so that this one can rely on them.

    Args:
        paths: The files, of local disks.
        kind: ``"arrow"`` for a stream or file of Arrow's, ``"parquet"``, ``"spreadsheet"``, plain or gzipped.

    Returns:
        How many bytes they take unpacked.

    Raises:
        DataError: A file is damaged, crashes its reader, has too many columns, or unpacks to far more than its size.
        NotAFileError: A path leads to a pipe or a device.
        OSError: A file cannot be opened.
    """
    for path in paths:
        require_file(path)
    done = subprocess.run(
        run_module(__name__),
        input=json.dumps({"kind": kind, "files": [os.fspath(path) for path in paths]}).encode(),
        capture_output=True,
        check=False,
        # the system's allocator asks for no more addresses than it needs
        env={**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "2"},
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith(b"{")]
    result = lines[-1] if lines else {}
    if "bytes" in result:
        return int(result["bytes"])
    if "error" in result:
        raise DataError(result["error"])
    path = paths[result.get("number", 0)]
    death = signal.Signals(-done.returncode).name if done.returncode < 0 else f"exit code {done.returncode}"
    raise DataError(f"{path}: damaged: reading it ended a process ({death}); write the file again")


def main() -> None:
    """Inspect the files that stdin names."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    asked = json.load(sys.stdin)
    total_bytes = 0
    for number, name in enumerate(asked["files"]):
        _say(number=number)
        try:
            total_bytes += _inspected_bytes(Path(name), asked["kind"])
        except DataError as error:
            return _say(error=str(error))
        except MemoryError:
            return _say(error=f"{name}: too little memory to read it, or it {too_much(os.path.getsize(name))}")
        except (OSError, ValueError, ArithmeticError, RuntimeError, TypeError, KeyError) as error:
            words = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
            return _say(error=f"{name}: {words}; write the file again")
    return _say(bytes=total_bytes)


def _say(**what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def _inspected_bytes(path: Path, kind: str) -> int:
    """Validate a file, and return how much its values take."""
    size_bytes = path.stat().st_size
    limit_bytes, total_bytes = unpacked_limit_bytes(size_bytes), 0
    _limit_memory(size_bytes, OTHER_MEMORY_BYTES + 2 * limit_bytes)
    for part_bytes in _PARTS[kind](path):
        total_bytes += part_bytes
        if total_bytes > limit_bytes:
            raise DataError(f"{path}: {too_much(size_bytes)}; if it is meant to, {_REMEDIES[kind]}")
    return total_bytes


def _limit_memory(mapped_bytes: int, more_bytes: int) -> None:
    """Limit the addresses of this process to those in use, a mapped file, and so many, at most the machine's memory."""
    more_bytes = mapped_bytes + min(more_bytes, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with suppress(OSError, ValueError):  # macOS has neither of the two
        used_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        most_bytes = used_bytes + more_bytes
        resource.setrlimit(
            resource.RLIMIT_AS, (most_bytes if hard == resource.RLIM_INFINITY else min(hard, most_bytes), hard)
        )


def _spreadsheet_bytes(path: Path) -> Iterator[int]:
    from python_calamine import CalamineError, CalamineWorkbook

    data = gzip.decompress(path.read_bytes()) if path.suffix.lower() == ".gz" else path.read_bytes()
    try:
        book = CalamineWorkbook.from_filelike(io.BytesIO(data))
        for name in book.sheet_names:
            for row in book.get_sheet_by_name(name).to_python(skip_empty_area=True):
                yield sum(VALUE_BYTES + (len(cell) if isinstance(cell, str) else 0) for cell in row)
    except (CalamineError, OSError, ValueError) as error:
        text = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: not a spreadsheet that can be read ({text}); save it again, or as CSV") from error


def _batch_bytes(batches: Iterator[pa.RecordBatch]) -> Iterator[int]:
    for batch in batches:
        yield VALUE_BYTES * batch.num_rows
        batch.validate(full=True)
        for column in batch.columns:
            yield from _weights(column)


def _arrow_batches(path: Path) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    with pa.memory_map(str(path)) as mapped:
        if mapped.read(6) == b"ARROW1":
            file = pa.ipc.open_file(mapped)
            require_columns(path, file.schema)
            yield from map(file.get_batch, range(file.num_record_batches))
        else:
            mapped.seek(0)
            stream = pa.ipc.open_stream(mapped)
            require_columns(path, stream.schema)
            yield from stream


def _parquet_batches(path: Path) -> Iterator[pa.RecordBatch]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path, memory_map=True) as file:
        require_columns(path, file.schema_arrow)
        yield from file.iter_batches(batch_size=BATCH_ROWS)


def _weights(array: pa.Array) -> Iterator[int]:
    """Yield how much the values of a column take in plain Arrow, in parts, with every value of a list counted."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    kind = array.type
    if pa.types.is_dictionary(kind):  # may repeat one long value
        if pa.types.is_primitive(kind.value_type):
            yield VALUE_BYTES * len(array)
        else:
            lengths = pc.binary_length(array.dictionary.cast(pa.large_binary()))
            yield VALUE_BYTES * len(array) + (pc.sum(lengths.take(array.indices)).as_py() or 0)
    elif pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):  # may, too
        for start in range(0, len(array), BATCH_ROWS):
            yield array.slice(start, BATCH_ROWS).cast(pa.large_binary()).nbytes
    elif pa.types.is_struct(kind):
        for number in range(kind.num_fields):
            yield from _weights(array.field(number))
    elif isinstance(kind, pa.ListType | pa.LargeListType | pa.FixedSizeListType):
        values = array.flatten()
        yield VALUE_BYTES * len(values)
        yield from _weights(values)
    else:
        if pa.types.is_temporal(kind):
            array.to_pylist()  # Python has no year 10,000
        yield array.nbytes


_PARTS: dict[str, Callable[[Path], Iterator[int]]] = {
    "arrow": lambda path: _batch_bytes(_arrow_batches(path)),
    "parquet": lambda path: _batch_bytes(_parquet_batches(path)),
    "spreadsheet": _spreadsheet_bytes,
}
_PLAIN = "write it again without compression and dictionaries"
_REMEDIES = {"arrow": _PLAIN, "parquet": _PLAIN, "spreadsheet": "save it as CSV"}


if __name__ == "__main__":
    main()
