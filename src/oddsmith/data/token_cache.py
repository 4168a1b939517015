"""Tokenized rows, kept from one start of a program to the next and found again by what they were made of.

    CACHE/tokens/KEY.tokens     an Arrow stream, then the SHA-256 of KEY and stream; CACHE: see cache.py

KEY is a digest of all that decides on the tokens, so no file is ever out of date; some are never asked for again, and
go when there is no room. A file that is not as it was written is ignored and made anew. Nothing is unpickled. Rows that
are found stay in their file (memory-mapped), which processes that train on the same rows share.

The cache may fail without doing harm: where nothing can be kept, rows are tokenized as if there were none.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import date
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import IO, Any

import datasets
import pyarrow as pa
from filelock import FileLock

from .. import __version__
from ..system.cache import cache_folder
from .tokens.pair_tokenizer import PairTokenizer
from .tokens.pieces import is_library_alone

FORMAT = 1  # of the file; raise it when the same key could mean another content
LEAST_ROWS = 1_000  # fewer are tokenized in half a second
MOST_BYTES = 4 * 10**9  # of all files together; a pair of 2 x 250 tokens takes 2 kB
HASHED_ROWS = 1_000  # at a time, so that the digest does not depend on how the rows lie in memory
WAIT_S = 600.0  # for another process that is tokenizing the same rows
DIGEST_BYTES = hashlib.sha256().digest_size


def token_key(rows: datasets.Dataset, pair_tokenizer: PairTokenizer, bad_rows: str) -> str | None:
    """The name under which the tokens of these rows are kept.

    Args:
        rows: The rows.
        pair_tokenizer: Makes the tokens.
        bad_rows: What is done about faulty rows.

    Returns:
        A digest of all that decides on the result. None where nothing is kept: ``datasets.disable_caching()`` was
        called, the rows are few, or the tokenizer runs code that its state does not tell.
    """
    if not datasets.is_caching_enabled() or len(rows) < LEAST_ROWS:
        return None
    tokenizer = _tokenizer_state(pair_tokenizer)
    if tokenizer is None:
        return None
    made_of = {
        "format": FORMAT,
        "code": _code_digest(),
        "versions": [__version__, *(version(name) for name in ("transformers", "tokenizers", "jinja2"))],
        "tokenizer": tokenizer,
        "max_length": pair_tokenizer.max_length,
        "max_prompt_length": pair_tokenizer.max_prompt_length,
        "is_encoder_decoder": pair_tokenizer.is_encoder_decoder,
        "max_completion_length": pair_tokenizer.max_completion_length,
        "bad_rows": bad_rows,
        "rows": rows_digest(rows),
    }
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def cached(key: str | None, make: Callable[[], pa.Table]) -> pa.Table:
    """The table that was made for ``key`` before, or else the one that is made now.

    Of several processes that ask at the same time, one makes it and the others wait.

    Args:
        key: See ``token_key``; None always makes it.
        make: Makes the table.

    Returns:
        The table; one that was found is memory-mapped.
    """
    if key is None:
        return make()
    file = cache_folder() / "tokens" / f"{key}.tokens"
    with _held(file.with_suffix(".lock")) as is_held:
        table = _read(file)
        if table is None:
            table = make()
            if is_held:
                _write(table, file)
    return table


def _tokenizer_state(pair_tokenizer: PairTokenizer) -> dict[str, Any] | None:
    """What decides on a tokenizer's work; None where that cannot be told."""
    tokenizer = pair_tokenizer.tokenizer
    kind = type(tokenizer)
    if not (kind.__module__.startswith("transformers.") and is_library_alone(tokenizer)):
        return None
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()  # what a call that tokenizes does as well; the state would differ before and after it
    backend.no_padding()
    try:
        pipeline = backend.to_str()
    except Exception as error:
        if type(error) is not Exception:  # tokenizers has no class of its own for a part that is written in Python
            raise
        return None
    template = tokenizer.chat_template
    return {
        "pipeline": hashlib.sha256(pipeline.encode()).hexdigest(),
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "split_special_tokens": tokenizer.split_special_tokens,
        "special_tokens": [str(tokenizer.special_tokens_map), tokenizer.all_special_tokens],
        "template": template,
        "date": str(date.today()) if "strftime_now" in str(template) else None,
    }


def _code_digest() -> str:
    """A digest of the code that makes tokens of rows, which a working copy changes without changing the version."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def rows_digest(rows: datasets.Dataset) -> str:
    """A digest of the content of rows, whichever way they lie in memory."""
    sink = _Hashing(hashlib.sha256(str(rows.features).encode()))
    tables = rows.with_format("arrow").iter(batch_size=HASHED_ROWS)
    _write_stream((table.combine_chunks().replace_schema_metadata(None) for table in tables), sink)
    return sink.digest.hexdigest()


def _write_stream(tables: Iterator[pa.Table], sink: _Hashing) -> None:
    first = next(tables)
    with pa.ipc.new_stream(sink, first.schema) as writer:
        for table in chain([first], tables):
            writer.write_table(table)


def _read(file: Path) -> pa.Table | None:
    """The table in ``file``, memory-mapped; None where there is no such file or it is not as it was written."""
    try:
        if file.stat().st_size <= DIGEST_BYTES:
            return None
        with pa.memory_map(str(file)) as mapped:
            content = mapped.read_buffer()
        os.utime(file)  # last used
    except OSError:
        return None
    stream = content.slice(0, content.size - DIGEST_BYTES)
    digest = _digest_for(file)
    digest.update(stream)
    if digest.digest() != content.slice(stream.size).to_pybytes():
        return None
    return pa.ipc.open_stream(stream).read_all()


def _write(table: pa.Table, file: Path) -> None:
    """Keep a table: written beside, renamed when whole, readable by its owner alone."""
    if table.nbytes > MOST_BYTES:
        return
    with suppress(OSError):  # no room, no permission
        descriptor, name = tempfile.mkstemp(dir=file.parent, suffix=".partial")
        try:
            with open(descriptor, "wb") as opened:
                sink = _Hashing(_digest_for(file), opened)
                _write_stream(iter([table]), sink)
                opened.write(sink.digest.digest())
            os.replace(name, file)
        finally:
            Path(name).unlink(missing_ok=True)
        _remove_oldest(file.parent)


def _remove_oldest(folder: Path) -> None:
    """Remove the files that were not used for longest until the others are no more than ``MOST_BYTES``."""
    files = sorted(((path.stat(), path) for path in folder.iterdir()), key=lambda found: -found[0].st_mtime)
    total_bytes = 0
    for found, path in files:
        total_bytes += found.st_size
        if total_bytes > MOST_BYTES:
            path.unlink()


@contextmanager
def _held(lock_file: Path) -> Iterator[bool]:
    """Whether this process alone may write: not where no lock can be had."""
    lock = FileLock(lock_file)
    try:
        lock_file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=WAIT_S)
    except (OSError, NotImplementedError):  # read-only, full, waited too long; a file system without locks
        yield False
        return
    try:
        yield True
    finally:
        with suppress(OSError):
            lock_file.unlink()  # who waits for it finds the work done
        lock.release()


def _digest_for(file: Path) -> Any:
    """A digest that begins with the file's name, so that a file under another's name is noticed."""
    return hashlib.sha256(file.name.encode())


class _Hashing(io.RawIOBase):
    """A file whose content goes into a digest, and into another file if there is one."""

    def __init__(self, digest: Any, file: IO[bytes] | None = None):
        self.digest, self.file = digest, file

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self.file.write(data) if self.file else len(data)
