"""What GPUs do at best: operations a second of large products in 16 bits, dense, with sums in float32."""

from __future__ import annotations

import re

# By a part of the name that CUDA or ROCm gives them, the more exact first. Sources: data sheets of NVIDIA and AMD
# without sparsity, as in torchtitan's tools/utils.py (get_peak_flops); GeForce: the whitepapers of their generations.
PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "A10": 125e12,
    "L4": 121e12,
    "T4": 65e12,
    "V100": 125e12,
    "RTX 5090": 210e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "MI300X": 1307e12,
}
_SMALLER = re.compile(r"Laptop|Max-Q|\bTi\b| D\b|MIG", re.IGNORECASE)  # bear the name of a larger one


def peak_operations(name: str) -> float | None:
    """Return the operations a second of a GPU; ``None`` where they are not known.

    The name is what ``torch.cuda.get_device_name`` returns, e.g. ``"NVIDIA H100 80GB HBM3"``.
    """
    known = known_name(name)
    return None if known is None else PEAKS[known]


def known_name(name: str) -> str | None:
    """Return the part of a GPU's name under which ``PEAKS`` has it; ``None`` where it does not."""
    if _SMALLER.search(name):
        return None
    return next((part for part in PEAKS if re.search(rf"\b{part}\b", name)), None)
