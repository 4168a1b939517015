"""Choose the number format in which this machine computes fastest, with the reason in one sentence."""

from __future__ import annotations

import platform
from typing import NamedTuple

import torch

X86_BF16_UNITS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16"}
NO_BF16_UNIT = "this CPU has neither AVX512-BF16 nor AMX"


class Precision(NamedTuple):
    """A number format (``"bf16"`` or ``"fp32"``) with the reason for it, as one line to print."""

    name: str
    reason: str


def best_precision(use_cpu: bool = False) -> Precision:
    """Return bf16 where the hardware multiplies it, float32 elsewhere; with ``use_cpu`` as if without accelerator.

    On a CPU bf16 needs AVX512-BF16 or AMX (Arm: the bf16 extension): without either it is emulated, and several times
    slower than float32. On NVIDIA it needs compute capability 8.0 (Ampere).
    """
    if not use_cpu and torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision("bf16", f"{name} multiplies bf16")
        return Precision("fp32", f"{name} has no bf16 arithmetic")
    if not use_cpu and torch.accelerator.is_available():
        device = torch.accelerator.current_accelerator()
        if device is not None and device.type in ("xpu", "npu"):
            return Precision("bf16", f"{device.type} multiplies bf16")
        return Precision("fp32", f"bf16 is not known to be fast on {device.type if device else 'this device'}")
    unit = _cpu_bf16_unit()
    if unit:
        return Precision("bf16", f"this CPU multiplies bf16 ({unit})")
    return Precision("fp32", f"{NO_BF16_UNIT}, so bf16 would be slower than float32")


def emulates_bf16(use_cpu: bool = False) -> bool:
    """Return whether the device that computes is a CPU that has to emulate bf16."""
    return (use_cpu or not torch.accelerator.is_available()) and _cpu_bf16_unit() is None


def _cpu_bf16_unit() -> str | None:
    """Return the name of the CPU's bf16 matrix instructions; ``None`` without, or where torch may not use them."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else _proc_cpuinfo_flags()
    if capabilities.get("bf16"):
        return "Arm BF16"
    # ATEN_CPU_CAPABILITY=avx2 makes torch compute as on an older CPU; the capabilities are still those of the hardware.
    if torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2"):
        return None
    return next((name for flag, name in X86_BF16_UNITS.items() if capabilities.get(flag)), None)


def _proc_cpuinfo_flags() -> dict[str, bool]:
    """Return the CPU flags that Linux lists, for torch before 2.12; none on other systems."""
    if platform.system() != "Linux":
        return {}
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith(("flags", "Features")):
                return dict.fromkeys(line.split(":", 1)[1].split(), True)
    return {}
