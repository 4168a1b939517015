"""What can be written where, and what kept something from being written: for run folders and exports alike."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from secrets import token_hex

from ..errors import OddsmithError

logger = logging.getLogger(__name__)

# The disk, the user's share of it, or the size that a file may have.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# A folder that may not be written, or a disk that cannot be.
CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)

# How the Rust libraries end what the system told them: safetensors in an error of its own, tokenizers in a bare
# ``Exception``; both drop the number.
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")


def write_fault(error: BaseException) -> int | None:
    """What the system said against writing a file.

    Args:
        error: What Python, safetensors or tokenizers raised; what it was raised from or during counts as well.

    Returns:
        A number of ``errno``; ``None`` where the system said nothing.
    """
    for link in error_chain(error):
        if isinstance(link, OSError) and link.errno is not None:
            return link.errno
        told = _RUST_ERROR.search(str(link))
        if told:
            return int(told[1])
    return None


def error_chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it was raised from or during, down to the first cause."""
    seen: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in seen:
        yield link
        seen.append(link)
        link = link.__cause__ or link.__context__


def in_words(fault: int) -> str:
    """A number of ``errno`` as it stands in a sentence: ``"no space left on device"``."""
    words = os.strerror(fault)
    return words[0].lower() + words[1:]


def nearest_folder(place: Path) -> Path:
    """The folder itself, or the nearest above it that is there."""
    return next(folder for folder in (place.absolute(), *place.absolute().parents) if folder.is_dir())


def free_bytes(place: Path) -> int:
    """What this user may still write on the file system of a place, which need not exist yet."""
    return shutil.disk_usage(nearest_folder(place)).free


def in_units(size_bytes: float) -> str:
    """Return a size in units: ``"1.2 GB"``, ``"350 MB"``, ``"12 kB"``."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if size_bytes >= unit:
            value = size_bytes / unit
            return f"{value:.1f} {name}" if value < 10 else f"{value:,.0f} {name}"
    return f"{size_bytes / 1e3:,.0f} kB"


def flush_to_disk(place: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk: a power cut could leave it empty."""
    descriptor = os.open(place, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(target: Path, *, mode: int = 0o666) -> Iterator[Path]:
    """Write a file so that it appears complete or not at all: the one place for "write beside, then rename".

        with replacing(run / "report.html") as partial:
            partial.write_text(page)

    Whatever ends the block early removes what was written. Two processes that write the same target do not disturb
    each other: each has a file of its own, and the last rename wins.

    Args:
        target: The file; one that is there is replaced, and a symbolic link is replaced rather than followed.
        mode: Permissions of a new file, less the umask; ``0o600`` for what only its owner may read.

    Yields:
        Path: An empty file beside it, in the same folder.
    """
    partial = target.with_name(f"{target.name}.{os.getpid()}-{token_hex(4)}.partial")
    os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
    try:
        yield partial
        flush_to_disk(partial)
        os.replace(partial, target)
        flush_to_disk(target.absolute().parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """Write a folder so that it appears complete or not at all: ``replacing`` for folders.

    Whatever ends the block early removes what was written, and the next call removes what a killed process left. The
    caller holds a lock: all processes that write the same target write to ``NAME.partial``.

    Args:
        target: The folder; its parent exists. A folder that is there is replaced.

    Yields:
        Path: An empty folder beside it.
    """
    partial, old = (target.with_name(target.name + suffix) for suffix in (".partial", ".replaced"))
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        for file in partial.rglob("*"):
            if file.is_file():
                # safetensors lets only the owner read its files; a server of another user may have to.
                file.chmod(partial.stat().st_mode & 0o666)
                flush_to_disk(file)
        is_there = target.exists()
        if is_there:  # a folder cannot be renamed onto one that holds files
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
        try:
            partial.rename(target)
        except OSError:
            if is_there:
                old.rename(target)
            raise
        flush_to_disk(target.absolute().parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def explained(explain: Callable[[int, Exception], None]) -> Iterator[None]:
    """Let somebody say in words what the system says against writing. Errors of ours pass as they are.

    Args:
        explain: Gets the number of ``errno`` and the error it was found in, and raises one of ours; if it returns,
            the error goes on.
    """
    try:
        yield
    except OddsmithError:
        raise
    except Exception as error:  # tokenizers raises nothing narrower; what is not the disk's goes on
        fault = write_fault(error)
        if fault is not None:
            explain(fault, error)
        raise


@contextmanager
def dispensable(place: Path, consequence: str) -> Iterator[None]:
    """Let a run go on where a file that is only looked at cannot be written; that is said once for each place.

    Args:
        place: The file, or what it belongs to.
        consequence: What follows from it, for the warning.
    """
    try:
        yield
    except MemoryError:
        _say_once(f"{place}: not written (out of memory); {consequence}")
    except Exception as error:  # a writer may raise nothing narrower; what is not the disk's goes on
        fault = write_fault(error)
        if fault is None:
            raise
        _say_once(f"{place}: not written ({in_words(fault)}); {consequence}")


@cache
def _say_once(warning: str) -> None:
    logger.warning(warning)
