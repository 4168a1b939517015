"""Say what this machine has, without torch: processor, memory, GPUs and their drivers."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import psutil

ARM_BF16 = "Arm BF16"
BF16_UNITS = {"bf16": ARM_BF16, "amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16"}
CONTROL_GROUP = Path("/sys/fs/cgroup")
NVIDIA_SECONDS = 10.0  # a driver that hangs answers never


class NvidiaGpu(NamedTuple):
    """A GPU, as its driver names it."""

    name: str
    memory_bytes: int
    capability: tuple[int, int]
    driver: str


def processor_name() -> str:
    """Return the name of the processor; its architecture where the system does not tell more."""
    if platform.system() == "Linux":
        found = re.search(r"^model name\s*:\s*(.+)$", _cpuinfo(), re.MULTILINE)
        return found[1].strip() if found else platform.machine()
    if platform.system() == "Darwin":
        done = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False)
        return done.stdout.strip() or platform.machine()
    return platform.machine()


def processor_flags() -> dict[str, bool]:
    """Return the flags of the processor that Linux lists; none on other systems."""
    for line in _cpuinfo().splitlines():
        if line.startswith(("flags", "Features")):
            return dict.fromkeys(line.split(":", 1)[1].split(), True)
    return {}


def bf16_unit(flags: Mapping[str, bool]) -> str | None:
    """Return the name of the bf16 instructions that are among the flags of a processor; ``None`` for none."""
    return next((name for flag, name in BF16_UNITS.items() if flags.get(flag)), None)


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory_bytes() -> int:
    """Return the free memory, within the limit of the control group if there is one."""
    available = psutil.virtual_memory().available
    try:
        limit = int((CONTROL_GROUP / "memory.max").read_text())
        used = int((CONTROL_GROUP / "memory.current").read_text())
        kinds = dict(line.split() for line in (CONTROL_GROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such file, or "max": no limit
        return available
    # Cached files, such as the model's, count as used, but the kernel drops them when memory is needed.
    return min(available, limit - used + int(kinds["inactive_file"]))


def nvidia_gpus() -> list[NvidiaGpu] | None:
    """Return the GPUs that NVIDIA's driver names; ``None`` where there is no driver, or it does not answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    asked = "--query-gpu=name,memory.total,compute_cap,driver_version"
    try:
        done = subprocess.run(
            [program, asked, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=NVIDIA_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return [gpu for line in done.stdout.splitlines() if (gpu := _gpu_of(line)) is not None]


def _gpu_of(line: str) -> NvidiaGpu | None:
    parts = [part.strip() for part in line.split(",")]
    if len(parts) != 4 or not parts[1].isdecimal():
        return None
    major, _, minor = parts[2].partition(".")
    capability = (int(major), int(minor)) if major.isdecimal() and minor.isdecimal() else (0, 0)
    return NvidiaGpu(parts[0], int(parts[1]) * 2**20, capability, parts[3])


def _cpuinfo() -> str:
    if platform.system() != "Linux":
        return ""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        return file.read(20_000)  # the first processor
