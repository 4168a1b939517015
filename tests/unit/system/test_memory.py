"""A lack of memory is explained in one line. Errors of this machine are real ones, those of a device their texts."""

import mmap
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from oddsmith.errors import OutOfMemoryError
from oddsmith.system.memory import (
    clear_memory_errors,
    is_device_error,
    is_device_out_of_memory,
    is_of_the_machine,
    is_out_of_memory,
    keep_few_kernels,
)

FIX = "lower per_device_train_batch_size (and raise gradient_accumulation_steps), lower max_length"


def on_device():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def mapped():
    raise RuntimeError("unable to mmap 6301764052 bytes from file </model.safetensors>: Cannot allocate memory (12)")


@pytest.mark.parametrize(
    ("ask", "expected"),
    [
        (lambda: torch.empty(10**15), "this machine is out of memory (4,000,000.0 GB were asked for); lower"),
        (lambda: bytearray(10**15), f"this machine is out of memory; {FIX}"),
        (lambda: np.empty(10**15), f"this machine is out of memory; {FIX}"),
        (lambda: mmap.mmap(-1, 2**60), f"this machine is out of memory; {FIX}"),
        (mapped, f"this machine is out of memory (6.3 GB were asked for); {FIX}"),
        (on_device, f"the device is out of memory; {FIX}"),
    ],
    ids=["torch", "Python", "NumPy", "mmap", "safetensors", "device"],
)
def test_what_ran_out_and_what_to_do(ask, expected):
    with pytest.raises(OutOfMemoryError) as raised, clear_memory_errors():
        ask()
    assert str(raised.value).startswith(expected)
    assert raised.value.exit_code == 1
    assert isinstance(raised.value, MemoryError)


@pytest.mark.parametrize(
    "ask", [lambda: torch.empty(10**15), lambda: bytearray(10**15), lambda: np.empty(10**15), on_device]
)
def test_smaller_pieces_may_fit_wherever_memory_ran_out(ask):
    with pytest.raises((RuntimeError, MemoryError)) as raised:
        ask()
    assert is_out_of_memory(raised.value)


def test_who_calls_the_library_gets_torch_s_own_error_of_a_device():
    with pytest.raises(torch.OutOfMemoryError), clear_memory_errors(device=False):
        on_device()
    with pytest.raises(OutOfMemoryError), clear_memory_errors(device=False):
        torch.empty(10**15)
    with pytest.raises(OutOfMemoryError), clear_memory_errors(device=False):
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), FileNotFoundError("x"), KeyError("x")])
def test_what_is_no_matter_of_memory_passes(error):
    with pytest.raises(type(error)), clear_memory_errors():
        raise error


SHORTAGES = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    torch.OutOfMemoryError("Allocation on device"),
    torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported", 2),
    RuntimeError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`"),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("MPS backend out of memory (MPS allocated: 17.9 GB)"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError(
        "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a non-contiguous input."
    ),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
    torch.distributed.DistBackendError("NCCL error in: x.cpp:1\nLast error:\nCuda failure 2 'out of memory'"),
    torch.distributed.DistBackendError("NCCL error in: x.cpp:1\nLast error:\nFailed to CUDA calloc async 2432 bytes"),
]
BREAKDOWNS = [
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered", 700),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: no kernel image is available for execution on the device"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(handle, opa, opb)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("Triton Error [CUDA]: invalid argument"),
    torch.distributed.DistBackendError("NCCL error in: x.cpp:1, unhandled system error"),
]
OTHERS = [
    RuntimeError("The size of tensor a (3) must match the size of tensor b (4) at non-singleton dimension 0"),
    RuntimeError("Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"),
    RuntimeError("Tensor on device cuda:0 is not on the expected device meta!"),
    ValueError("CUDA error: out of memory"),
    MemoryError(),
    OutOfMemoryError("the device is out of memory"),
]


def named(error):
    return f"{type(error).__name__}-{str(error)[:60]}"


@pytest.mark.parametrize("error", SHORTAGES, ids=named)
def test_whatever_says_that_a_device_lacks_memory_is_such_a_lack(error):
    assert is_device_out_of_memory(error)
    assert is_device_error(error)
    with (
        pytest.raises(OutOfMemoryError, match=f"the device is out of memory; {FIX.split('(')[0]}"),
        clear_memory_errors(),
    ):
        raise error


@pytest.mark.parametrize("error", BREAKDOWNS, ids=named)
def test_a_breakdown_of_a_device_is_no_lack_of_memory(error):
    assert is_device_error(error)
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)), clear_memory_errors():
        raise error


@pytest.mark.parametrize("error", OTHERS, ids=named)
def test_what_is_wrong_elsewhere_is_no_error_of_a_device(error):
    assert not is_device_error(error)
    assert not is_device_out_of_memory(error)


@pytest.mark.parametrize(
    "error", [*SHORTAGES, *BREAKDOWNS, MemoryError(), OSError(12, "Cannot allocate memory")], ids=named
)
def test_an_error_of_the_machine_is_known(error):
    assert is_of_the_machine(error)


@pytest.mark.parametrize("error", [*OTHERS[:3], KeyError("x"), FileNotFoundError("x")], ids=named)
def test_an_error_of_the_code_is_none_of_the_machine(error):
    assert not is_of_the_machine(error)
    assert not is_out_of_memory(error)


# ---- Kernels of a CPU


def test_how_many_kernels_are_kept_is_the_user_s_to_say(monkeypatch):
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "4096")
    monkeypatch.delenv("LRU_CACHE_CAPACITY")
    keep_few_kernels()
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "4096"
    assert os.environ["LRU_CACHE_CAPACITY"] == "256"


# What the C library has given out (mallinfo2), before and after 300 more lengths.
ROWS_OF_EVER_OTHER_LENGTHS = """
import ctypes, torch
import oddsmith.model  # bounds what a CPU keeps of its kernels

class HeapUse(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "a", "b", "c", "mapped", "d", "e", "used", "f", "g")]

ask = ctypes.CDLL(None).mallinfo2
ask.restype = HeapUse
weight = torch.ones(64, 64, dtype=torch.bfloat16)
for first in (500, 1000, 2000):
    print(ask().used)
    for tokens in range(first, first + 300):
        torch.ones(tokens, 64, dtype=torch.bfloat16) @ weight
print(ask().used)
"""


@pytest.mark.slow
@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN has no bfloat16 here")
def test_rows_of_ever_other_lengths_take_no_more_memory():
    # A process of its own: tests that ran here before have filled what is kept.
    found = subprocess.run(
        [sys.executable, "-c", ROWS_OF_EVER_OTHER_LENGTHS], capture_output=True, text=True, timeout=120, check=True
    )
    start, filled, *more = map(int, found.stdout.split())
    assert filled - start > 10 * 2**20
    assert all(then - filled < (filled - start) / 4 for then in more)
