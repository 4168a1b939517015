"""What machines do to a run: full disks, disks that cannot be written, limits, clocks that jump."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    """No file that this process writes may grow past ``size_bytes``."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def may_mount() -> bool:
    """Whether this user may mount a file system of its own: root, outside of most containers."""
    return sys.platform == "linux" and os.geteuid() == 0 and shutil.which("mount") is not None


@contextmanager
def small_disk(folder: Path, size: str, **options: str) -> Iterator[Path]:
    """A disk of its own at a new folder: a tmpfs of this size, e.g. ``"4m"``.

    Skips the test where it cannot be mounted.
    """
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
    """Change a small disk that is in use: ``"ro"``, ``size="8m"``."""
    done = _mount(folder, "tmpfs", dict.fromkeys(["remount", *options], "") | values)
    assert done.returncode == 0, done.stderr


def _mount(folder: Path, kind: str, options: dict[str, str]) -> subprocess.CompletedProcess[str]:
    words = ",".join(f"{name}={value}" if value else name for name, value in options.items())
    return subprocess.run(["mount", "-t", kind, "-o", words, kind, folder], capture_output=True, text=True)
