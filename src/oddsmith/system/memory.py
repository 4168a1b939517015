"""Explain in one line that the memory of the machine or the device ran out, and what to do. Needs no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import OddsmithError, OutOfMemoryError

TRAINING_FIX = (
    "lower per_device_train_batch_size (and raise gradient_accumulation_steps), lower max_length, or add"
    " gradient_checkpointing, use_peft or load_in_4bit"
)
OTHER_FIX = "close other programs, or take a smaller model or less data"

# "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate
# 40000000000 bytes. Error code 12 (Cannot allocate memory)"; "unable to mmap 6301764052 bytes from file
# <model.safetensors>: Cannot allocate memory (12)"; "can't start new thread".
_SHORTAGE = re.compile(r"DefaultCPUAllocator|Cannot allocate memory|can't start new thread")
_ASKED_BYTES = re.compile(r"(?:tried to allocate|unable to mmap) (\d+) bytes")


@contextmanager
def clear_memory_errors(fix: str = TRAINING_FIX, *, device: bool = True) -> Iterator[None]:
    """Raise our ``OutOfMemoryError`` where a ``MemoryError``, ``OSError`` or ``RuntimeError`` means a lack of memory.

    ``fix`` is what to do, for the message. Without ``device`` torch's own ``OutOfMemoryError`` of a device passes: its
    message is clear, unlike those for a lack of CPU memory, and users of the library catch it.
    """
    try:
        yield
    except OddsmithError:
        raise
    except (MemoryError, RuntimeError, OSError) as error:
        what = _what_ran_out(error)
        if what is None or (what.startswith("the device") and not device):
            raise
        raise OutOfMemoryError(f"{what}; {fix}") from error


def _what_ran_out(error: Exception) -> str | None:
    text = str(error)
    if type(error).__name__ == "OutOfMemoryError" or (isinstance(error, RuntimeError) and "out of memory" in text):
        return "the device is out of memory"
    if isinstance(error, MemoryError) or _SHORTAGE.search(text):
        asked = _ASKED_BYTES.search(text)
        return "this machine is out of memory" + (f" ({int(asked[1]) / 1e9:,.1f} GB were asked for)" if asked else "")
    return None
