"""Launches of the project's Triton kernels, as a step makes them: the largest tiles that a real model asks for.

Each calls the function that launches the kernels, on tensors of the CPU whose types and widths are a model's; few rows
are enough, for nothing is run (``cards.py``).
"""

from __future__ import annotations

from collections.abc import Callable

LAUNCHES: dict[str, Callable[[], object]] = {}
