"""Join tables as they are made: in memory while they are small, then in a file without a name that is memory-mapped."""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from contextlib import suppress
from itertools import chain
from tempfile import TemporaryFile

import pyarrow as pa

from ..system.files import own_cache

MEMORY_BYTES = 256 * 2**20


def joined(tables: Iterable[pa.Table]) -> pa.Table:
    """Return tables of one schema, at least one, as one.

    The file lies in the cache folder, and goes with the table. What cannot be written there stays in memory.
    """
    rest = iter(tables)
    held: list[pa.Table] = []
    size_bytes = 0
    for table in rest:
        held.append(table)
        size_bytes += table.nbytes
        if size_bytes > MEMORY_BYTES:
            break
    else:
        return pa.concat_tables(held)
    schema = held[0].schema
    try:
        folder = own_cache("tokens")
        file = TemporaryFile(dir=folder) if folder else None  # noqa: SIM115 - closed below
    except OSError:  # no permission, or the user keeps no tokens
        file = None
    if file is None:
        return pa.concat_tables([*held, *rest])
    written, in_memory = 0, list[pa.Table]()
    try:
        writer = pa.ipc.new_stream(file, schema)
        for table in chain(held, rest):
            if not in_memory:
                with suppress(OSError):  # no room
                    writer.write_table(table)
                    file.flush()
                    written += len(table.to_batches())
                    continue
            in_memory.append(table)
        if written:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    finally:
        with suppress(OSError):  # what was not written is written again, in vain, when it is closed
            file.close()
    if not written:
        return pa.concat_tables(in_memory)
    reader = pa.ipc.open_stream(pa.py_buffer(mapped))
    on_disk = pa.Table.from_batches([reader.read_next_batch() for _ in range(written)], schema)
    return pa.concat_tables([on_disk, *in_memory])
