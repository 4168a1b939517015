"""Compile Triton kernels for NVIDIA cards that are not here, and say what each needs of one.

Inside ``compiling_for(card)`` a kernel that is launched as usual, ``kernel[grid](...)``, on tensors of the CPU is
compiled down to the card's machine code by the assembler in Triton's wheel, and not run. So what is compiled is what
the launching function asks for: its block sizes, warps, stages and argument types.

A kernel that needs more shared memory than a card has fails when it is first launched there; one that needs more
registers than a thread has keeps the rest in ordinary memory ("spills"), which is slow but right.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction


class Card(NamedTuple):
    """A card, or several of one kind."""

    name: str
    capability: tuple[int, int]
    shared_bytes: int  # that one block of threads may ask for
    multiprocessors: int

    def __str__(self) -> str:
        return f"sm_{self.capability[0]}{self.capability[1]}"


# Shared memory: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
CARDS = (
    Card("A100", (8, 0), 163 << 10, 108),
    Card("RTX 3090, A10, A40", (8, 6), 99 << 10, 82),
    Card("RTX 4090, L4, L40", (8, 9), 99 << 10, 128),
    Card("H100, H200", (9, 0), 227 << 10, 132),
    Card("B200", (10, 0), 227 << 10, 148),
    Card("RTX 5090", (12, 0), 99 << 10, 170),
)
T4 = Card("T4, RTX 20xx", (7, 5), 64 << 10, 40)  # computes in fp16; FlexAttention is not tried on it


@dataclass(frozen=True)
class Compiled:
    """What a compiled kernel needs; ``spilled_bytes`` a thread."""

    name: str
    shared_bytes: int
    registers: int
    spilled_bytes: int
    warps: int

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.shared_bytes:,} B shared, {self.registers} registers, {self.spilled_bytes} B spilled,"
            f" {self.warps} warps"
        )


class CardDriver:
    """What Triton asks its driver while it compiles."""

    def __init__(self, card: Card):
        self.card = card
        major, minor = card.capability
        self.number = 10 * major + minor  # kernels are cached by this
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: {
                "max_shared_mem": card.shared_bytes,
                "multiprocessor_count": card.multiprocessors,
                "max_num_regs": 65536,
                "warpSize": 32,
            }
        )

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.number, 32)

    def get_current_device(self) -> int:
        return self.number

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_device_capability(self, device: int | None = None) -> tuple[int, int]:
        return self.card.capability

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)

    def get_device_interface(self) -> object:
        return torch.cuda


@contextmanager
def compiling_for(card: Card, cache: Path) -> Iterator[list[Compiled]]:
    """Compile every kernel that is launched inside, instead of running it, and list what each needs."""
    found: dict[str, Compiled] = {}
    compiled: list[Compiled] = []
    run = JITFunction.run

    def compile_only(self: JITFunction, *args, grid, warmup, **options):
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        if kernel.hash not in found:
            found[kernel.hash] = needs(kernel, cache)
            compiled.append(found[kernel.hash])
        return kernel

    properties = SimpleNamespace(
        name=card.name,
        major=card.capability[0],
        minor=card.capability[1],
        multi_processor_count=card.multiprocessors,
        shared_memory_per_block_optin=card.shared_bytes,
        warp_size=32,
    )
    before = triton.runtime.driver._active
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(JITFunction, "run", compile_only))
        stack.enter_context(mock.patch.object(torch.cuda, "get_device_properties", return_value=properties))
        stack.enter_context(mock.patch.object(torch.cuda, "get_device_capability", return_value=card.capability))
        stack.enter_context(knobs.cache.scope())
        knobs.cache.dir = str(cache)
        triton.runtime.driver.set_active(CardDriver(card))
        try:
            yield compiled
        finally:
            triton.runtime.driver.set_active(before)


def needs(kernel, folder: Path) -> Compiled:
    """Return what a compiled kernel needs, as its machine code says."""
    code = folder / f"{kernel.hash}.cubin"
    code.parent.mkdir(parents=True, exist_ok=True)
    code.write_bytes(kernel.asm["cubin"])
    tool = knobs.nvidia.cuobjdump.path
    said = subprocess.run([tool, "--dump-resource-usage", code], check=True, capture_output=True, text=True).stdout
    registers, stack, local = (int(re.search(rf"\b{key}:(\d+)", said)[1]) for key in ("REG", "STACK", "LOCAL"))
    return Compiled(kernel.metadata.name, kernel.metadata.shared, registers, stack + local, kernel.metadata.num_warps)
