"""Explain in one line that the memory of the machine or the device ran out, and what to do. Needs no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import OddsmithError, OutOfMemoryError

TRAINING_FIX = (
    "lower per_device_train_batch_size (and raise gradient_accumulation_steps), lower max_length, or add"
    " gradient_checkpointing, use_peft or load_in_4bit"
)
OTHER_FIX = "close other programs, or take a smaller model or less data"

# Devices say it in many words, and torch has an ``OutOfMemoryError`` for those of its own allocator alone. "CUDA error:
# out of memory", "Triton Error [CUDA]: out of memory"; from NCCL "Cuda failure 2 'out of memory'", "Failed to CUDA
# calloc". Libraries find no room to work in: CUBLAS_STATUS_ALLOC_FAILED, or CUBLAS_STATUS_NOT_INITIALIZED "when calling
# `cublasCreate(handle)`"; CUDNN_STATUS_NOT_SUPPORTED where no plan of cuDNN's fits (accelerate reads it so, too).
_DEVICE_SHORTAGE = re.compile(
    r"out of memory|Failed to (?:CUDA|HIP|CUDART) ?calloc|STATUS_ALLOC_FAILED|DEVICE_ALLOCATION_FAILED"
    r"|STATUS_NOT_INITIALIZED when calling `\w+Create|CUDNN_STATUS_NOT_SUPPORTED"
)
# Errors like: CUDA error: an illegal memory access was encountered; CUDA driver error; Triton Error [CUDA];
# NCCL error in; cuDNN error: CUDNN_STATUS_EXECUTION_FAILED.
_DEVICE_ERROR = re.compile(
    r"\b(?:CUDA|HIP|XPU|MPS|NCCL|RCCL|cuDNN|MIOpen)\b(?: \w+)? error\b|Triton Error \[|\bCUDA kernel errors\b"
    r"|\b(?:CUBLAS|CUBLASLT|CUDNN|CUSOLVER|CUSPARSE|HIPBLAS|ROCBLAS|MIOPEN)_STATUS_|device-side assert",
    re.IGNORECASE,
)

# "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate
# 40000000000 bytes. Error code 12 (Cannot allocate memory)"; "unable to mmap 6301764052 bytes from file
# <model.safetensors>: Cannot allocate memory (12)"; "std::bad_alloc"; "can't start new thread".
_SHORTAGE = re.compile(r"DefaultCPUAllocator|Cannot allocate memory|\bbad_alloc\b|can't start new thread")
_ASKED_BYTES = re.compile(r"(?:tried to allocate|unable to mmap) (\d+) bytes")


# A CPU compiles its products in 16 bits for each shape, and each length of a row is another one. oneDNN and torch keep
# the last 1,024 of these kernels each, of 0.8 MB. A micro-batch uses 50 to 100 of them, in each layer again.
KEPT_KERNELS = 256
KERNEL_BYTES = 800_000


def keep_few_kernels() -> None:
    """Let oneDNN and torch keep fewer kernels of a CPU, before their first one; settings of the user's own stay."""
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(KEPT_KERNELS))


@contextmanager
def clear_memory_errors(fix: str = TRAINING_FIX, *, device: bool = True) -> Iterator[None]:
    """Raise our ``OutOfMemoryError`` where a ``MemoryError``, ``OSError`` or ``RuntimeError`` means a lack of memory.

    ``fix`` is what to do, for the message. Without ``device`` torch's own ``OutOfMemoryError`` of a device passes: its
    message is clear, unlike all others, and users of the library catch it.
    """
    try:
        yield
    except OddsmithError:
        raise
    except (MemoryError, RuntimeError, OSError) as error:
        what = _what_ran_out(error)
        if what is None or (_is_torch_s_own(error) and not device):
            raise
        raise OutOfMemoryError(f"{what}; {fix}") from error


def is_device_out_of_memory(error: BaseException) -> bool:
    """Return whether a device lacks memory: the same work in smaller pieces may succeed."""
    return _is_torch_s_own(error) or (
        isinstance(error, RuntimeError) and _DEVICE_SHORTAGE.search(str(error)) is not None
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether a device or this machine lacks memory: the same work in smaller pieces may succeed."""
    return is_device_out_of_memory(error) or (
        isinstance(error, RuntimeError | MemoryError) and _what_ran_out(error) is not None
    )


def _is_torch_s_own(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and type(error).__name__ == "OutOfMemoryError"


def is_device_error(error: BaseException) -> bool:
    """Return whether an error comes from a device, its driver or its libraries, not from the code that was run there.

    After most of them, but a lack of memory, the device computes nothing more in this process.
    """
    names = {kind.__name__ for kind in type(error).__mro__}
    return is_device_out_of_memory(error) or (
        isinstance(error, RuntimeError) and ("AcceleratorError" in names or bool(_DEVICE_ERROR.search(str(error))))
    )


def is_of_the_machine(error: BaseException) -> bool:
    """Return whether an error tells of the machine: a lack of memory of any kind, or a fault of a device.

    Code that tries what a model or a file can do lets such an error pass: it says nothing of the model or the file.
    """
    return is_device_error(error) or (
        isinstance(error, MemoryError | RuntimeError | OSError) and _what_ran_out(error) is not None
    )


def _what_ran_out(error: Exception) -> str | None:
    text = str(error)
    if is_device_out_of_memory(error):
        return "the device is out of memory"
    if isinstance(error, MemoryError) or _SHORTAGE.search(text):
        asked = _ASKED_BYTES.search(text)
        return "this machine is out of memory" + (f" ({int(asked[1]) / 1e9:,.1f} GB were asked for)" if asked else "")
    return None
