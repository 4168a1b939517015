"""A lack of memory is explained in one line; all but two of these errors are real ones."""

import mmap

import numpy as np
import pytest
import torch

from oddsmith.errors import OutOfMemoryError
from oddsmith.system.memory import clear_memory_errors

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


def test_who_calls_the_library_gets_torch_s_own_error_of_a_device():
    with pytest.raises(torch.OutOfMemoryError), clear_memory_errors(device=False):
        on_device()
    with pytest.raises(OutOfMemoryError), clear_memory_errors(device=False):
        torch.empty(10**15)


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), FileNotFoundError("x"), KeyError("x")])
def test_what_is_no_matter_of_memory_passes(error):
    with pytest.raises(type(error)), clear_memory_errors():
        raise error
