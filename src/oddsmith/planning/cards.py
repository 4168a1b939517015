"""GPUs by name: their memory, and the rates that large products, copies and attention reach on them.

Bandwidths and links are those of NVIDIA's data sheets. Shares of the peaks that products and copies are taken to
reach: 65% and 80% on Hopper and newer ones, 75% and 83% on an A100, 90% on the others, which are small for their
bandwidth. Attention: what flash-attention 2 reaches with a causal mask on A100 and H100 (arXiv 2307.08691, Figures 4
to 7), and the same share of the peak on the others. Nothing here was measured by us.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import ConfigError
from ..system.peaks import known_name

CUDA_BYTES = 10**9 // 2  # of a process: its context, kernels, workspaces of cuBLAS
NCCL_BYTES = 3 * 10**8  # of a process: buffers of its channels
LESS_THAN_80GB = 60e9  # bytes: an A100 of 40 GB
FREE = 0.95  # of a card's memory, beside what CUDA and a desktop take
BF16_FROM, FP16_FROM = (8, 0), (7, 0)  # compute capability (system/precision.py)
MOST_GB = 10_000


@dataclass(frozen=True)
class Card:
    """What a card does; what it does at best is in ``system/peaks.py``."""

    bf16: float  # operations a second in large products of 16 bits, sums in float32
    float32: float
    bytes: float  # a second, of a copy
    attention: tuple[float, float]  # operations a second of flash-attention 2, forward and backward
    capability: tuple[int, int]
    memory: int  # bytes
    link: float = 25e9  # bytes a second to the other cards of a machine, each way


def _of_hopper(memory_gib: int, bandwidth: float) -> Card:
    return Card(640e12, 50e12, bandwidth, (350e12, 300e12), (9, 0), memory_gib << 30, 450e9)


# Bandwidths of data sheets, TB/s: H100 SXM 3.35, H200 4.8, B200 8, A100 SXM 2.04, L40S 0.86, A10 0.6, L4 0.3, T4 0.32,
# V100 SXM 0.9, RTX 5090 1.79, 4090 1.01, 3090 0.94.
CARDS = {
    "H100": _of_hopper(80, 2.7e12),
    "H200": _of_hopper(141, 3.8e12),
    "B200": Card(1460e12, 60e12, 6.4e12, (780e12, 670e12), (10, 0), 180 << 30, 900e9),
    "A100": Card(235e12, 17e12, 1.7e12, (180e12, 150e12), (8, 0), 80 << 30, 300e9),
    "A100-40GB": Card(235e12, 17e12, 1.29e12, (180e12, 150e12), (8, 0), 40 << 30, 300e9),
    "L40S": Card(270e12, 80e12, 0.77e12, (180e12, 150e12), (8, 9), 48 << 30),
    "A10": Card(110e12, 28e12, 0.54e12, (80e12, 65e12), (8, 6), 24 << 30),
    "L4": Card(100e12, 27e12, 0.27e12, (70e12, 60e12), (8, 9), 24 << 30),
    "T4": Card(50e12, 7e12, 0.28e12, (20e12, 16e12), (7, 5), 16 << 30, 12e9),
    "V100": Card(100e12, 14e12, 0.8e12, (40e12, 34e12), (7, 0), 32 << 30, 150e9),
    "RTX 5090": Card(190e12, 95e12, 1.6e12, (125e12, 105e12), (12, 0), 32 << 30),
    "RTX 4090": Card(150e12, 70e12, 0.9e12, (120e12, 100e12), (8, 9), 24 << 30),
    "RTX 3090": Card(62e12, 30e12, 0.84e12, (45e12, 38e12), (8, 6), 24 << 30),
}


@dataclass(frozen=True)
class Gpu:
    """A GPU to plan for; of one that is given by its memory alone no rate is known."""

    name: str
    memory: int  # bytes
    card: Card | None = None

    @property
    def precision(self) -> str:
        """Return the number format of a run: ``"bf16"``, ``"fp16"`` or ``"fp32"``; a current GPU if it is unknown."""
        capability = BF16_FROM if self.card is None else self.card.capability
        return "bf16" if capability >= BF16_FROM else "fp16" if capability >= FP16_FROM else "fp32"


def gpu_of(text: str) -> Gpu:
    """Return the GPU of a name (``h100``, ``rtx4090``) or a size (``24GB``); ``ConfigError`` for anything else."""
    if size := re.fullmatch(r"(\d+(?:\.\d+)?)\s*gi?b?", text.strip(), re.IGNORECASE):
        if not 1 <= float(size[1]) <= MOST_GB:
            raise ConfigError(f"--gpu is {text!r}; expected a size from 1GB to {MOST_GB:,}GB")
        return Gpu(f"a GPU of {size[1]} GB", int(float(size[1]) * 1e9))
    named = {_key(name): name for name in CARDS}
    found = named.get(_key(text)) or named.get("rtx" + _key(text))
    if found is None:
        raise ConfigError(f"--gpu is {text[:40]!r}; expected its memory, such as 24GB, or one of {', '.join(CARDS)}")
    return Gpu(found, CARDS[found].memory, CARDS[found])


def gpus_of(text: str) -> tuple[Gpu, int | None]:
    """Return the GPU of a text and how many: ``h100`` (None), ``h100x8``, ``8 x h100``; ``ConfigError`` as `gpu_of`."""
    try:
        return gpu_of(text), None
    except ConfigError as error:
        for pattern in (r"(?P<name>.*\S)\s*x\s*(?P<count>\d{1,6})", r"(?P<count>\d{1,6})\s*x\s*(?P<name>\S.*)"):
            if found := re.fullmatch(pattern, text.strip(), re.IGNORECASE):
                try:
                    return gpu_of(found["name"]), int(found["count"])
                except ConfigError:
                    continue
        raise error


def card_of(name: str, memory: int) -> Card | None:
    """Return the card of a name that CUDA gives, with its bytes of memory; ``None`` where its rates are not known."""
    known = known_name(name)
    return CARDS.get("A100-40GB" if known == "A100" and memory < LESS_THAN_80GB else known or "")


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
