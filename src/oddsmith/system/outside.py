"""Open files that others may have put there: regular files only, without waiting; and refuse links in a run folder.

A pipe that is opened like a file waits for a writer, for good; a device may never end; a link may lead to any file of
the user. ``open_file`` and ``read_text`` take the place of ``open`` and ``Path.read_text`` wherever a path, or what
lies there, comes from outside. ``require_file`` is for files that a library opens, and ``require_plain_folder`` for a
folder that is written to.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path
from typing import Any

from ..errors import NotAFileError

# Ways to name a descriptor that the process has open already, as the shell does for ``<(command)``.
_OWN_DESCRIPTOR = re.compile(r"/dev/stdin|(?:/dev|/proc/self)/fd/\d+")
# Trackers keep links of their own in these folders (W&B: ``latest-run``); nothing of ours is in them. The file system
# makes the last one, which only the superuser reads.
_NOT_OURS = ("wandb", "mlruns", "lost+found")


def kind_of(mode: int) -> str:
    """Return what a mode of ``os.stat`` stands for: ``"a pipe"``; ``"a file"`` for a regular file alone."""
    kinds = {
        stat.S_IFREG: "a file",
        stat.S_IFDIR: "a folder",
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
    }
    return kinds.get(stat.S_IFMT(mode), "a device")


def require_file(path: str | Path, *, follow: bool = True, typed: bool = False) -> None:
    """Raise ``NotAFileError`` unless a path leads to a regular file, and ``OSError`` if it leads nowhere.

    Args:
        path: The file.
        follow: Whether it may be a symbolic link to a regular file.
        typed: Whether the user typed this path, which then may be ``/dev/stdin`` or a process substitution.
    """
    _check(path, os.stat(path, follow_symlinks=follow).st_mode, typed)


def open_file(path: str | Path, mode: str = "rb", *, follow: bool = True, typed: bool = False, **options: Any) -> Any:
    """Return a file as ``open`` does, but only a regular one: anything else is a ``NotAFileError``, at once.

    ``follow`` and ``typed`` are those of ``require_file``; the options are those of ``open``.
    """

    def opener(name: str, flags: int) -> int:
        try:
            require_file(name, follow=follow, typed=typed)
        except FileNotFoundError:
            if not flags & os.O_CREAT:
                raise
        flags |= os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY | (0 if follow else os.O_NOFOLLOW)
        descriptor = os.open(name, flags, 0o666)
        try:
            _check(name, os.fstat(descriptor).st_mode, typed)  # it may have been replaced since
            os.set_blocking(descriptor, True)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    return open(path, mode, opener=opener, **options)


def read_text(
    path: str | Path, *, encoding: str = "utf-8", errors: str = "strict", follow: bool = True, typed: bool = False
) -> str:
    """Return the text of a regular file; all else as ``open_file``."""
    with open_file(path, "r", follow=follow, typed=typed, encoding=encoding, errors=errors) as file:
        return file.read()


def require_plain_folder(folder: Path, *, deep: bool = True, links_into: Path | None = None) -> None:
    """Raise ``NotAFileError`` for a link, a pipe, a socket or a device in a folder, and if ``deep`` in its subfolders.

    Whoever writes to the folder would write through them, and whoever reads might wait for good. The folder itself may
    be a link, or not exist, and its links may lead to files in ``links_into``. What is put there later is not seen.
    """
    waiting = [os.fspath(folder)]
    while waiting:
        place = waiting.pop()
        try:
            entries = list(os.scandir(place))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError as error:
            raise NotAFileError(place, "a folder that you may not read; make it readable, or remove it") from error
        for entry in entries:
            try:
                mode = entry.stat(follow_symlinks=False).st_mode
            except FileNotFoundError:  # a partial file of a process that writes there
                continue
            if stat.S_ISDIR(mode):
                if deep and (place != os.fspath(folder) or entry.name not in _NOT_OURS):
                    waiting.append(entry.path)
            elif not stat.S_ISREG(mode):
                if links_into and stat.S_ISLNK(mode) and Path(entry.path).resolve().parent == links_into:
                    continue
                remedy = "put the file itself there" if stat.S_ISLNK(mode) else "remove it"
                raise NotAFileError(entry.path, f"{kind_of(mode)}, not a file of this folder; {remedy}")


def _check(path: str | Path, mode: int, typed: bool) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(mode) and not (typed and _OWN_DESCRIPTOR.fullmatch(os.fspath(path))):
        raise NotAFileError(path, f"{kind_of(mode)}, not a file")
