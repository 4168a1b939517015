"""Select the points of a metric for a page: a bounded number from a range of steps, or only those that are new."""

from __future__ import annotations

import math
from bisect import bisect_right
from itertools import pairwise
from typing import Any

import numpy as np

from ..diagnose.history import Series

MAX_POINTS = 2000


def thin(steps: np.ndarray, values: np.ndarray, limit: int = MAX_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Keep the lowest and the highest point of each stretch, or its first if all are NaN: at most ``limit`` (even)."""
    if len(steps) <= limit:
        return steps, values
    edges = np.linspace(0, len(steps), limit // 2 + 1).astype(int)
    kept: list[int] = []
    for first, end in pairwise(edges):
        part = values[first:end]
        if np.isnan(part).all():
            kept.append(first)
        else:
            kept += sorted({first + int(np.nanargmin(part)), first + int(np.nanargmax(part))})
    return steps[kept], values[kept]


class GrowingSeries:
    """One metric of a run, with its length at each version of the run, so that a page gets only later points."""

    def __init__(self) -> None:
        self._steps, self._values = np.zeros(64), np.zeros(64)
        self._length = 0
        self._versions: list[int] = []
        self._lengths: list[int] = []

    @property
    def whole(self) -> Series:
        """Return all points."""
        return Series(self._steps[: self._length], self._values[: self._length])

    def append(self, added: Series, version: int) -> bool:
        """Add points of a version of the run; return whether they replaced any, from their first step on."""
        if len(added) == 0:
            return False
        kept = int(np.searchsorted(self._steps[: self._length], added.steps[0], side="left"))
        replaced = kept < self._length
        length = kept + len(added)
        if length > len(self._steps):
            self._steps, self._values = (
                np.concatenate([array[:kept], np.zeros(2 * length - kept)]) for array in (self._steps, self._values)
            )
        self._steps[kept:length], self._values[kept:length] = added.steps, added.values
        self._length = length
        self._versions.append(version)
        self._lengths.append(length)
        return replaced

    def cut_back(self, step: float) -> bool:
        """Drop the points after a step; return whether there were any."""
        kept = int(np.searchsorted(self._steps[: self._length], step, side="right"))
        cut, self._length = kept < self._length, kept
        return cut

    def view(self, after: int | None = None, first: float = -math.inf, last: float = math.inf) -> dict[str, Any] | None:
        """Return the points from step ``first`` to ``last`` for a page, at most ``MAX_POINTS``; ``None`` without any.

        ``after`` is the version that the page has; ``None`` for all points. The result has ``steps``, ``values``
        (``None`` for NaN and infinity), and whether points were left out (``thinned``).
        """
        start = 0
        if after is not None:
            place = bisect_right(self._versions, after)
            start = self._lengths[place - 1] if place else 0
        steps, values = self._steps[start : self._length], self._values[start : self._length]
        inside = slice(int(np.searchsorted(steps, first)), int(np.searchsorted(steps, last, side="right")))
        steps, values = steps[inside], values[inside]
        if len(steps) == 0:
            return None
        kept_steps, kept_values = thin(steps, values)
        return {
            "steps": [int(step) for step in kept_steps],
            "values": [float(f"{value:.6g}") if math.isfinite(value) else None for value in kept_values],
            "thinned": len(kept_steps) < len(steps),
        }
