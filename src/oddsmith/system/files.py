"""Write files atomically, and explain why a file cannot be written: for run folders and exports."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from secrets import token_hex

from ..errors import NotAFileError, OddsmithError

logger = logging.getLogger(__name__)

# A full disk or quota, or a limit on the size of files.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# A folder or disk that may not be written.
CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)

# How Rust libraries end a message of the system: safetensors in its own error class, tokenizers in a bare
# ``Exception``; neither has an ``errno``.
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")


def write_fault(error: BaseException) -> int | None:
    """Return the ``errno`` of an error of Python, safetensors or tokenizers, or of its causes; ``None`` without any."""
    for link in error_chain(error):
        if isinstance(link, OSError) and link.errno is not None:
            return link.errno
        if match := _RUST_ERROR.search(str(link)):
            return int(match[1])
    return None


def error_chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its chain of causes and contexts."""
    seen: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in seen:
        yield link
        seen.append(link)
        link = link.__cause__ or link.__context__


def in_words(fault: int) -> str:
    """Return the words for an ``errno``, in lower case: ``"no space left on device"``."""
    words = os.strerror(fault)
    return words[0].lower() + words[1:]


def cache_folder() -> Path:
    """Return the folder for files that can be made again, such as converted models and tokenized rows.

    It is ``$ODDSMITH_CACHE``, else ``$XDG_CACHE_HOME/oddsmith``, else ``~/.cache/oddsmith``, and may not exist.
    """
    if chosen := os.environ.get("ODDSMITH_CACHE"):
        return Path(chosen).expanduser()
    user_cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(user_cache) if user_cache else Path.home() / ".cache") / "oddsmith"


def own_cache(name: str) -> Path | None:
    """Return a folder of this name below ``cache_folder`` that nobody else can have written; it is made.

    Where another user has put one there, its name ends in this user's number; None where neither can be had, of which
    a warning tells. A folder that cannot be made is an ``OSError``.
    """
    for folder in (cache_folder() / name, cache_folder() / f"{name}-{os.geteuid()}"):
        if private_folder(folder):
            return folder
        logger.warning("%s: may be written by others, and is not used", folder)
    return None


def private_folder(folder: Path) -> bool:
    """Make a folder that only this user can write, with those above it, and return whether it is one.

    One of this user's that others could write is closed to them; a link, and a folder of another user, is none. What
    was put there before must be checked by its own owner (``is_own``).
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            return False
        raise
    try:
        status = os.fstat(descriptor)
        if status.st_mode & 0o077 and status.st_uid == os.geteuid():
            with suppress(OSError):  # a file system that is read-only
                os.fchmod(descriptor, 0o700)
        return is_own(os.fstat(descriptor))
    finally:
        os.close(descriptor)


def is_own(status: os.stat_result) -> bool:
    """Return whether a file or folder, by its status, is this user's and can be written by nobody else."""
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022


def nearest_folder(place: Path) -> Path:
    """Return the folder itself, or the nearest existing one above it."""
    return next(folder for folder in (place.absolute(), *place.absolute().parents) if folder.is_dir())


def free_bytes(place: Path) -> int:
    """Return how much this user may still write on the file system of a place, which need not exist yet."""
    return shutil.disk_usage(nearest_folder(place)).free


def in_units(size_bytes: float) -> str:
    """Return a size in units: ``"1.2 GB"``, ``"350 MB"``, ``"12 kB"``."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if size_bytes >= unit:
            value = size_bytes / unit
            return f"{value:.1f} {name}" if value < 10 else f"{value:,.0f} {name}"
    return f"{size_bytes / 1e3:,.0f} kB"


def flush_to_disk(place: Path) -> None:
    """Wait until the content of a file, or the list of names of a folder, is on the disk, safe from a power cut."""
    descriptor = os.open(place, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(target: Path, *, mode: int = 0o666) -> Iterator[Path]:
    """Write a file so that it appears complete or not at all: yield an empty file beside it, which is then renamed.

        with replacing(run / "report.html") as partial:
            partial.write_text(page)

    An exception in the block removes the partial file. Two processes that write the same target do not interfere: each
    has its own partial file, and the last rename wins. An existing file is replaced, and so is a link of either kind,
    through which nothing is written. ``mode`` are the permissions of the file, less the umask; ``0o600`` lets only the
    owner read it.
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

    Yields an empty folder beside the target; the parent exists, and an existing target is replaced. An exception in the
    block removes the partial folder; after a kill, the next call removes it. The caller holds a lock, because all
    processes that write the same target write to ``NAME.partial``.
    """
    partial, old = (target.with_name(target.name + suffix) for suffix in (".partial", ".replaced"))
    _remove(partial)
    partial.mkdir()
    try:
        yield partial
        for file in partial.rglob("*"):
            if file.is_file():
                # safetensors makes its files readable by the owner alone; a server of another user may need them.
                file.chmod(partial.stat().st_mode & 0o666)
                flush_to_disk(file)
        is_there = os.path.lexists(target)
        if is_there:  # a folder cannot be renamed onto a folder with files
            _remove(old)
            target.rename(old)
        try:
            partial.rename(target)
        except OSError:
            if is_there:
                old.rename(target)
            raise
        flush_to_disk(target.absolute().parent)
        _remove(old)
    finally:
        _remove(partial)


def _remove(place: Path) -> None:
    """Remove a folder, a file or a link, which is not followed, if there is one."""
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place, ignore_errors=True)
    else:
        place.unlink(missing_ok=True)


def replace_hard_links(files: Iterable[Path]) -> None:
    """Put a copy in the place of each file that has another name elsewhere too, as in backups by hard links.

    What is then written into these files, by whomever, does not change the others.
    """
    for file in files:
        status = file.lstat()
        if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
            with replacing(file, mode=stat.S_IMODE(status.st_mode)) as partial:
                shutil.copyfile(file, partial)


@contextmanager
def explained(explain: Callable[[int, Exception], None]) -> Iterator[None]:
    """Call ``explain`` with the ``errno`` of an error of writing and the error itself, to raise one of our errors.

    If it returns, the error is raised again. Our own errors pass.
    """
    try:
        yield
    except OddsmithError:
        raise
    except Exception as error:  # tokenizers raises nothing narrower; errors without an errno are raised on
        fault = write_fault(error)
        if fault is not None:
            explain(fault, error)
        raise


@contextmanager
def dispensable(place: Path, consequence: str) -> Iterator[None]:
    """Warn once that a file (or a file in a folder) could not be written, and let the run continue without it.

    ``consequence`` says in the warning what the run lacks then.
    """
    try:
        yield
    except MemoryError:
        _warn_once(f"{place}: not written (out of memory); {consequence}")
    except Exception as error:  # as in ``explained``
        fault = write_fault(error)
        if fault is None:
            raise
        why = error.strerror if isinstance(error, NotAFileError) else in_words(fault)
        _warn_once(f"{place}: not written ({why}); {consequence}")


@cache
def _warn_once(warning: str) -> None:
    logger.warning(warning)
