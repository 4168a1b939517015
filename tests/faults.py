"""Faults of machines: small disks, limits on files, control groups without memory."""

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

MEMORY_BYTES = 2**12  # of a control group: any new page is too many, also for a step that reuses its memory


@contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    """Limit the size of the files that this process writes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def may_mount() -> bool:
    """Return whether this user may mount a file system, as root outside of most containers."""
    return sys.platform == "linux" and os.geteuid() == 0 and shutil.which("mount") is not None


@contextmanager
def small_disk(folder: Path, size: str, **options: str) -> Iterator[Path]:
    """Mount a tmpfs of this size, e.g. ``"4m"``, at a new folder; skip the test where that is not possible."""
    if not may_mount():
        pytest.skip("mounting a small disk needs root")
    folder.mkdir()
    mounted = _mount(folder, "tmpfs", {"size": size, **options})
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def remount(folder: Path, *options: str, **values: str) -> None:
    """Change options of a small disk that is in use: ``"ro"``, ``size="8m"``."""
    done = _mount(folder, "tmpfs", dict.fromkeys(["remount", *options], "") | values)
    assert done.returncode == 0, done.stderr


def _mount(folder: Path, kind: str, options: dict[str, str]) -> subprocess.CompletedProcess[str]:
    words = ",".join(f"{name}={value}" if value else name for name, value in options.items())
    return subprocess.run(["mount", "-t", kind, "-o", words, kind, folder], capture_output=True, text=True)


@contextmanager
def memory_group() -> Iterator[Callable[[int], object]]:
    """Make a control group without memory, of version 1 or 2; skip the test where that is not possible.

    Yields a function that moves a process into the group: the kernel kills it when it asks for more memory.
    """
    root = Path("/sys/fs/cgroup")
    is_first = (root / "memory").is_dir()
    folder = (root / "memory" if is_first else root) / f"oddsmith-test-{os.getpid()}"
    try:
        folder.mkdir()
        for name in ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes") if is_first else ("memory.max",):
            if (folder / name).exists() or not is_first:
                (folder / name).write_text(str(MEMORY_BYTES), encoding="ascii")
    except OSError as error:
        if folder.is_dir():
            folder.rmdir()
        pytest.skip(f"no control group can be made here: {error}")
    try:
        yield lambda pid: (folder / "cgroup.procs").write_text(str(pid), encoding="ascii")
    finally:
        folder.rmdir()
