"""Keep tokenized rows from one start of a program to the next, found again by a digest of what they were made of.

    CACHE/tokens/NAME.tokens    an Arrow stream, then its HMAC; CACHE: see ``cache_folder``

NAME and the key of the HMAC are halves of a digest of everything that decides on the tokens, so no file is ever out of
date, and who knows no more than its name cannot sign another. Folder and files are this user's and written by nobody
else; a file of another user, or with a wrong signature, is ignored with a warning and written anew. Files that are no
longer used are removed when the cache is full. Nothing is unpickled. Rows that are found stay in their file
(memory-mapped), which all processes that train on the same rows share.

A cache that cannot be read or written does no harm: the rows are tokenized as if there were none.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import json
import logging
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import date
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from shutil import disk_usage
from typing import IO, Any

import datasets
import pyarrow as pa
from filelock import FileLock, Timeout

from .. import __version__
from ..errors import NotAFileError
from ..system import strict_json
from ..system.files import is_own, own_cache, replacing
from ..system.outside import open_file
from .sources.json_lines import JsonLines
from .tokens.pair_tokenizer import PairTokenizer
from .tokens.pieces import is_library_alone

logger = logging.getLogger(__name__)

FORMAT = 2  # of the file; raise it when the same key could mean another content
MIN_ROWS = 1_000  # fewer are tokenized in half a second
# Of all files together, or of one if half of the free room holds it; a pair of 2 x 250 tokens and its texts take 4 kB
MAX_BYTES = 4 * 10**9
HASHED_ROWS = 1_000  # at a time, so that the digest does not depend on how the rows lie in memory
WAIT_S = 24 * 3600.0  # for another process that is tokenizing the same rows; a lock ends with its process
SILENT_WAIT_S = 2.0
DIGEST_BYTES = hashlib.sha256().digest_size
NAME_LETTERS = 64  # of a key, for the name of its file


def token_key(rows: datasets.Dataset | JsonLines, pair_tokenizer: PairTokenizer, bad_rows: str) -> str | None:
    """Return the key under which the tokens of these rows are kept, a digest of everything that decides on them.

    It is None where nothing is kept: ``datasets.disable_caching()`` was called, the rows are few, or the tokenizer runs
    Python code that its state does not show.
    """
    if not datasets.is_caching_enabled() or len(rows) < MIN_ROWS:
        return None
    tokenizer = _tokenizer_state(pair_tokenizer)
    if tokenizer is None:
        return None
    parts = {
        "format": FORMAT,
        "code": _code_digest(),
        "versions": [__version__, *(version(name) for name in ("transformers", "tokenizers", "jinja2"))],
        "tokenizer": tokenizer,
        "max_length": pair_tokenizer.max_length,
        "max_prompt_length": pair_tokenizer.max_prompt_length,
        "is_encoder_decoder": pair_tokenizer.is_encoder_decoder,
        "max_completion_length": pair_tokenizer.max_completion_length,
        "chat_template_on_text": pair_tokenizer.chat_template_on_text,
        "system_prompt": pair_tokenizer.system_prompt,
        "min_score_margin": pair_tokenizer.min_score_margin,
        "bad_rows": bad_rows,
        "rows": rows.digest() if isinstance(rows, JsonLines) else rows_digest(rows),
    }
    return hashlib.sha512(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def cached(key: str | None, make: Callable[[], pa.Table]) -> pa.Table:
    """Return the table that was kept under ``key``, memory-mapped, or else make it and keep it.

    Of several processes that ask at the same time, one makes it and the others wait. Without a key (see ``token_key``)
    the table is made and not kept.
    """
    folder = None
    if key is not None:
        with suppress(OSError):  # no room, no permission
            folder = own_cache("tokens")
    if key is None or folder is None:
        return make()
    file = folder / f"{key[:NAME_LETTERS]}.tokens"
    with _locked(file.with_suffix(".lock")) as is_locked:
        table = _read(file, key)
        if table is None:
            table = make()
            if is_locked:
                _write(table, file, key)
    return table


def _tokenizer_state(pair_tokenizer: PairTokenizer) -> dict[str, Any] | None:
    """Return everything in a tokenizer that decides on the tokens; None for one that runs Python code."""
    tokenizer = pair_tokenizer.tokenizer
    kind = type(tokenizer)
    if not (kind.__module__.startswith("transformers.") and is_library_alone(tokenizer)):
        return None
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()  # a call that tokenizes does so too; the state would differ before and after it
    backend.no_padding()
    try:
        pipeline = backend.to_str()
    except Exception as error:
        if type(error) is not Exception:  # what tokenizers raises for a part written in Python
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
    """Return a digest of the code that decides on tokens, which a working copy changes without changing the version."""
    digest = hashlib.sha256()
    for file in (*sorted(Path(__file__).parent.rglob("*.py")), Path(strict_json.__file__)):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def rows_digest(rows: datasets.Dataset) -> str:
    """Return a digest of the content of rows; it does not depend on how they lie in memory."""
    sink = _Hashing(hashlib.sha256(str(rows.features).encode()))
    tables = rows.with_format("arrow").iter(batch_size=HASHED_ROWS)
    _write_stream((table.combine_chunks().replace_schema_metadata(None) for table in tables), sink)
    return sink.digest.hexdigest()


class _Hashing(io.RawIOBase):
    """A file that adds what is written to a digest, and passes it to another file if there is one."""

    def __init__(self, digest: Any, file: IO[bytes] | None = None):
        self.digest, self.file = digest, file

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self.file.write(data) if self.file else len(data)


def _write_stream(tables: Iterator[pa.Table], sink: _Hashing) -> None:
    first = next(tables)
    with pa.ipc.new_stream(sink, first.schema) as writer:
        for table in chain([first], tables):
            writer.write_table(table)


def _signature(key: str) -> hmac.HMAC:
    """Begin the signature of a file."""
    return hmac.new(key.encode(), digestmod="sha256")


def _read(file: Path, key: str) -> pa.Table | None:
    """Return the table in ``file``, memory-mapped; None where there is none that this user has written for ``key``."""
    fault = "is damaged, or was written for other rows"
    try:
        with open_file(file, follow=False) as opened:
            status = os.fstat(opened.fileno())
            if not is_own(status):
                fault = "may be written by others"
            elif status.st_size > DIGEST_BYTES:
                mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
                content = pa.py_buffer(mapped)
                stream = content.slice(0, content.size - DIGEST_BYTES)
                signature = _signature(key)
                signature.update(stream)
                if hasattr(mapped, "madvise"):  # the file stays in the system's cache, not in this process's memory
                    mapped.madvise(mmap.MADV_DONTNEED)
                if hmac.compare_digest(signature.digest(), content.slice(stream.size).to_pybytes()):
                    os.utime(opened.fileno())  # last used
                    return pa.ipc.open_stream(stream).read_all()
    except NotAFileError as error:
        fault = str(error.strerror)
    except OSError:
        return None
    logger.warning("%s: %s; the rows are tokenized anew", file, fault)
    return None


def _write(table: pa.Table, file: Path, key: str) -> None:
    """Keep a table, readable by its owner alone, and remove the files that were not used for longest."""
    with suppress(OSError):  # no room, no permission
        if table.nbytes > max(MAX_BYTES, disk_usage(file.parent).free // 2):
            return
        with replacing(file, mode=0o600) as partial, partial.open("wb") as opened:
            sink = _Hashing(_signature(key), opened)
            _write_stream(iter([table]), sink)
            opened.write(sink.digest.digest())
        total_bytes = 0
        files = [(path.lstat(), path) for path in file.parent.iterdir()]
        for status, path in sorted(files, key=lambda item: -item[0].st_mtime):
            total_bytes += status.st_size
            if total_bytes > MAX_BYTES and path != file:
                path.unlink()


@contextmanager
def _locked(lock_file: Path) -> Iterator[bool]:
    """Lock out other processes; yield False where no lock can be had, so that this process must not write."""
    lock = FileLock(lock_file)
    try:
        try:
            lock.acquire(timeout=min(SILENT_WAIT_S, WAIT_S))
        except Timeout:
            logger.warning("another process tokenizes the same rows: waiting for it (%s)", lock_file)
            lock.acquire(timeout=WAIT_S)
    except (OSError, NotImplementedError):  # read-only, full, waited too long; a file system without locks
        yield False
        return
    try:
        yield True
    finally:
        with suppress(OSError):
            lock_file.unlink()  # a process that waits for it finds the table written
        lock.release()
