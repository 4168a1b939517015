"""Read how busy, how full and how warm the GPU of this process is, by the driver's own counters."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable

import torch

logger = logging.getLogger(__name__)

# Of torch.cuda, which asks NVML (package nvidia-ml-py) or, on ROCm, amdsmi; and the factor to our unit.
_READINGS: dict[str, tuple[str, float]] = {
    "gpu_use": ("utilization", 0.01),
    "gpu_temperature": ("temperature", 1.0),
    "gpu_power_watts": ("power_draw", 0.001),  # NVML gives milliwatts, amdsmi watts
}


class GpuReadings:
    """Reads the GPU of this process; a reading that fails once is not asked for again."""

    def __init__(self) -> None:
        self._known = dict(_READINGS)
        if torch.version.hip:
            self._known["gpu_power_watts"] = ("power_draw", 1.0)

    def read(self) -> dict[str, float]:
        """Return the readings by their names in ``metrics.py``; empty where this process uses no GPU."""
        if not torch.cuda.is_initialized():  # a run on the CPU of a machine with a GPU has not touched it
            return {}
        free, total = torch.cuda.mem_get_info()
        found = {"gpu_memory_gib": (total - free) / 2**30}
        for name, (function, unit) in list(self._known.items()):
            value = _reading(getattr(torch.cuda, function))
            if value is None:
                del self._known[name]
            else:
                found[name] = value * unit
        return found


def _reading(function: Callable[[], float]) -> float | None:
    """Return what a function of ``torch.cuda`` reads; ``None`` where package or driver does not offer it."""
    try:
        return float(function())
    except _errors() as error:  # called where one is raised
        logger.debug("the GPU is not read: %s", error)
    return None


def _errors() -> tuple[type[Exception], ...]:
    """Return what a reading may raise; the packages that ask drivers have errors of their own."""
    found: list[type[Exception]] = [ImportError, RuntimeError, ValueError, OSError]
    for package, error in (("pynvml", "NVMLError"), ("amdsmi", "AmdSmiException")):
        try:
            found.append(getattr(importlib.import_module(package), error))
        except (ImportError, AttributeError, OSError, KeyError):
            continue
    return tuple(found)
