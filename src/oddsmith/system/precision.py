"""Choose the number format in which this machine computes fastest, with the reason in one sentence.

    device                                            run    full: weights   adapter: base   4 bit computes in
    NVIDIA from 8.0 on (A100, RTX 30xx, H100, ...)    bf16   float32         bf16            bf16
    NVIDIA 7.0, 7.5 (V100, T4, RTX 20xx)              fp16   float32         fp16            fp16
    older NVIDIA, and other GPUs                      fp32   float32         float32         float32
    XPU, NPU                                          bf16   float32         bf16            bf16
    CPU with AMX, AVX512-BF16 or Arm's bf16           bf16   float32         bf16            bf16
    other CPUs                                        fp32   float32         float32         float32

The run computes under autocast; what is trained is float32 in all rows, as the loss scaling of fp16 needs. Where
``fp16`` or ``bf16`` is set, the row of that format holds; where ``dtype`` is, the weights have it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from .machine import ARM_BF16, bf16_unit, processor_flags

FIRST_TENSOR_CORES = (7, 0)  # compute capability of NVIDIA's GPUs
NO_BF16_UNIT = "this CPU has neither AVX512-BF16 nor AMX"


class Precision(NamedTuple):
    """A number format (``"bf16"``, ``"fp16"`` or ``"fp32"``) with the reason for it, as one line to print."""

    name: str
    reason: str


def best_precision(use_cpu: bool = False) -> Precision:
    """Return the format of a run by the hardware; with ``use_cpu`` as if without accelerator.

    On a CPU bf16 needs AVX512-BF16 or AMX (Arm: the bf16 extension): without either it is emulated, and several times
    slower than float32. On NVIDIA it needs compute capability 8.0 (Ampere); units for fp16 came with 7.0 (Volta).
    """
    if not use_cpu and torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision("bf16", f"{name} multiplies bf16")
        if torch.version.cuda is not None and torch.cuda.get_device_capability() >= FIRST_TENSOR_CORES:
            return Precision("fp16", f"{name} multiplies fp16, and has no bf16 arithmetic")
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


def dtype_to_answer(where_bf16: str = "auto") -> str:
    """Return the type of the weights of a model that only answers or scores on this machine.

    Where bf16 is fast that is ``where_bf16``: ``"auto"`` keeps the type in which the weights are stored.
    """
    return {"bf16": where_bf16, "fp16": "float16"}.get(best_precision().name, "float32")


def emulates_bf16(use_cpu: bool = False) -> bool:
    """Return whether the device that computes is a CPU that has to emulate bf16."""
    return (use_cpu or not torch.accelerator.is_available()) and _cpu_bf16_unit() is None


def emulated_bf16_on_gpu(use_cpu: bool = False) -> str | None:
    """Return a line for a run in bf16 on a GPU that has to emulate it; ``None`` on all other devices."""
    if use_cpu or not torch.cuda.is_available() or (best := best_precision()).name == "bf16":
        return None
    faster = {"fp16": "fp16", "fp32": "float32"}[best.name]
    return (
        f"bf16 is asked for, but {torch.cuda.get_device_name()} has no units for it and emulates it; leave it out, and"
        f" {faster} is used, which is faster"
    )


def _cpu_bf16_unit() -> str | None:
    """Return the name of the CPU's bf16 matrix instructions; ``None`` without, or where torch may not use them."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else processor_flags()
    unit = bf16_unit(capabilities)
    # ATEN_CPU_CAPABILITY=avx2 makes torch compute as on an older CPU; the capabilities are still those of the hardware.
    if unit != ARM_BF16 and torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2"):
        return None
    return unit
