"""Compile ``noop_cuda_guard.cpp`` with the C++ compiler that is there, once, and load it before torch is imported."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

_is_loaded = False
SOURCE = Path(__file__).with_name("noop_cuda_guard.cpp")


class NoGuard(RuntimeError):
    """The library cannot be made here; the message says why in one line."""


def compiled(folder: Path) -> Path:
    """Return the library, compiled into ``folder`` unless it is there for this source and this torch."""
    if sys.platform != "linux":
        raise NoGuard("it is made on Linux alone")
    torch_folder = _torch_folder()
    if list((torch_folder / "lib").glob("lib*_cuda.*")) or list((torch_folder / "lib").glob("lib*_hip.*")):
        raise NoGuard("this torch is built for a GPU and has the real ones")
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", "c++"), "c++", "g++", "clang++"))), None)
    if compiler is None:
        raise NoGuard("there is no C++ compiler (c++, g++ or clang++)")
    key = hashlib.sha256(SOURCE.read_bytes() + f"{torch_folder}{version('torch')}".encode()).hexdigest()[:16]
    library = folder / f"noop_cuda_guard-{key}.so"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():  # its libraries are loaded
        raise NoGuard(f"{folder} belongs to another user")
    if library.exists():
        return library
    unfinished = folder / f"{library.name}.{os.getpid()}"
    libraries = torch_folder / "lib"
    command = [compiler, "-std=c++20", "-O0", "-shared", "-fPIC", f"-I{torch_folder / 'include'}", str(SOURCE)]
    command += ["-o", str(unfinished), f"-L{libraries}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{libraries}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        error = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[-200:])
        raise NoGuard(f"{Path(compiler).name} cannot compile it against torch {version('torch')}: {error}")
    unfinished.rename(library)  # two processes may compile at the same time
    return library


def load(folder: Path | None = None) -> None:
    """Compile and load the library; torch must not have been imported yet.

    ``folder`` keeps the library; by default ``FAKE_GPU_CACHE``, or one below the folder of temporary files.
    """
    global _is_loaded
    if _is_loaded:
        return
    if "torch" in sys.modules:
        raise NoGuard("torch was imported first, and has decided by now that there is no accelerator")
    default = os.environ.get("FAKE_GPU_CACHE") or Path(tempfile.gettempdir()) / f"oddsmith-fake-gpu-{os.getuid()}"
    library = ctypes.CDLL(str(compiled(folder or Path(default))), mode=ctypes.RTLD_GLOBAL)
    if not library.set_noop_cuda_guard():
        raise NoGuard("this torch has a CUDA guard of its own")
    _is_loaded = True


def load_or_exit() -> None:
    """Load the library, or end a script with the reason in one line."""
    try:
        load()
    except NoGuard as reason:
        sys.exit(f"Steps on a fake GPU cannot run here: {reason}")


def _torch_folder() -> Path:
    found = find_spec("torch")
    if found is None or not found.submodule_search_locations:
        raise NoGuard("torch is not installed")
    return Path(found.submodule_search_locations[0])
