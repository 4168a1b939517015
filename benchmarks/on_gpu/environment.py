"""Say what machine this is, and how fast it multiplies and copies.

python -m on_gpu.environment REQUEST.json ANSWER.json      (run by first_minutes.py)
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

PACKAGES = ("torch", "triton", "flash_attn", "transformers", "accelerate", "peft", "bitsandbytes", "datasets", "trl")
WARM_UPS, REPEATS = 5, 20
MATRIX_SIZE = {False: 8192, True: 256}  # by whether everything is small


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that matter, "no" for one that is missing."""
    found = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "no"
    return found


def seconds_of(compute: Callable[[], Any], device: str) -> float:
    """Return the median time of several calls."""
    times_s = []
    for _ in range(WARM_UPS + REPEATS):
        if device == "cuda":
            torch.cuda.synchronize()
        started_s = time.perf_counter()
        compute()
        if device == "cuda":
            torch.cuda.synchronize()
        times_s.append(time.perf_counter() - started_s)
    return float(np.median(times_s[WARM_UPS:]))


def rates(device: str, *, toy: bool) -> dict[str, float]:
    """Return operations a second in square products of random matrices, by type, and bytes a second of a copy.

    A product of size n has 2 n^3 operations; a copy counts the bytes that it reads and those that it writes.
    """
    size = MATRIX_SIZE[toy]
    found = {}
    for name in ("bfloat16", "float16", "float32"):
        left, right = (torch.randn(size, size, device=device).to(getattr(torch, name)) for _ in range(2))
        found[name] = 2 * size**3 / seconds_of(lambda left=left, right=right: left @ right, device)
    source = torch.randn(size, size * 4, device=device)
    target = torch.empty_like(source)
    found["copy"] = 2 * source.nbytes / seconds_of(lambda: target.copy_(source), device)
    return found


def card() -> dict[str, Any]:
    """Return the facts about the first GPU; what ``nvidia-smi`` adds is left out where it is missing."""
    if not torch.cuda.is_available():
        return {"name": "", "cards": 0}
    facts = torch.cuda.get_device_properties(0)
    asked = ["nvidia-smi", "--query-gpu=driver_version,power.limit", "--format=csv,noheader", "--id=0"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, encoding="utf-8", check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        said = "unknown"
    return {
        "name": facts.name,
        "cards": torch.cuda.device_count(),
        "capability": f"{facts.major}.{facts.minor}",
        "memory_bytes": facts.total_memory,
        "multiprocessors": facts.multi_processor_count,
        "driver": said.strip(),
        "cuda": torch.version.cuda,
        "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
        "shared_bytes_a_block": getattr(facts, "shared_memory_per_block_optin", None),
    }


def main(request_file: str, answer_file: str) -> None:
    """Read the request, look, measure, write."""
    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    answer = {
        "card": card() if request["device"] == "cuda" else {"name": "", "cards": 0},
        "cores": os.cpu_count(),
        "versions": versions(),
        "flash_attn": "installed" if find_spec("flash_attn") else "not installed: PyTorch's varlen_attn is used",
        "rates": rates(request["device"], toy=request["toy"]),
        "matrix_size": MATRIX_SIZE[request["toy"]],
    }
    Path(answer_file).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
