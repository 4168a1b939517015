"""Lock a run folder, so that one process at a time trains in it. The system releases the lock when its owner dies."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from ..errors import ConfigError
from ..system.files import replace_hard_links, replacing
from ..system.outside import read_text
from ..system.run_folder import LOCK_FILE, LOCK_OWNER_FILE, require_writable_run
from ..system.strict_json import read_object

# Workers that a dead owner started (for data loading) exit within 5 s, and hold its lock until then.
DEAD_OWNER_S = 15.0
MAX_HOST_NAME = 64


def is_lock_file(file: Path) -> bool:
    """Return whether a file in a run folder belongs to its lock, also a partial one of an owner that was killed."""
    return file.name == LOCK_FILE or file.name.startswith(LOCK_OWNER_FILE)


@contextmanager
def held(run: Path) -> Iterator[None]:
    """Lock a run folder for this process; ``ConfigError`` if another process has it. Entered again, this does nothing.

    Nothing is written into a folder that leads elsewhere: a link, a pipe, a socket or a device in it, put there before
    now, is a ``NotAFileError``, and so is a folder in the place of a file; files with a second name elsewhere become
    copies. The folder is made if it does not exist, and removed at the end if it is empty.
    """
    run.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run / LOCK_FILE, timeout=0, is_singleton=True)
    if lock.is_locked:
        yield
        return
    require_writable_run(run)
    try:
        _acquire(lock, run)
    except NotImplementedError:  # a file system without locks
        yield
        return
    try:
        for leftover in run.glob(f"{LOCK_OWNER_FILE}.*.partial"):  # of an owner that was killed just then
            leftover.unlink(missing_ok=True)
        replace_hard_links(file for file in run.iterdir() if not is_lock_file(file))
        with replacing(run / LOCK_OWNER_FILE) as partial:
            partial.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}), encoding="utf-8")
        yield
    finally:
        with suppress(OSError):  # the folder may be gone, or contain a run now
            (run / LOCK_OWNER_FILE).unlink(missing_ok=True)
            # Before the release: a process waits for a lock only if its owner is dead.
            (run / LOCK_FILE).unlink(missing_ok=True)
            if not any(run.iterdir()):
                run.rmdir()
        lock.release()


def _acquire(lock: FileLock, run: Path) -> None:
    try:
        lock.acquire()
    except Timeout:
        owner = _owner(run)
        host, pid = str(owner.get("host"))[:MAX_HOST_NAME], owner.get("pid")
        here = host == socket.gethostname()
        pid = pid if type(pid) is int and pid > 0 else None
        if here and pid and _is_dead(pid):
            with suppress(Timeout):
                lock.acquire(timeout=DEAD_OWNER_S)
                return
        who = f"process {pid}" + ("" if here else f" on {host}") if pid else "another process"
        raise ConfigError(
            f"output_dir {run} is in use by {who}; wait for it or end it, or choose another folder"
        ) from None


def _is_dead(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE  # killed, and its parent has not waited for it yet
    except psutil.NoSuchProcess:
        return True


def _owner(run: Path) -> dict[str, Any]:
    try:
        return read_object(read_text(run / LOCK_OWNER_FILE, follow=False))
    except (OSError, ValueError):
        return {}
