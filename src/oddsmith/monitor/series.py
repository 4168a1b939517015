"""Select the points of a metric for a page: a bounded number from a range of steps, or only those that are new."""

from __future__ import annotations

import math
from bisect import bisect_right
from itertools import pairwise
from typing import Any

import numpy as np

from ..diagnose.history import Series

MAX_POINTS = 2000
CAPACITY = 131_072  # points of a metric that are kept; of a longer run a sample
SAMPLE = CAPACITY // 4
EXCEPTIONAL_DEVIATIONS = 8.0


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


def sample(series: Series) -> Series:
    """Take the first point of each stretch of as many steps, ``SAMPLE`` at most, so that means and medians stay right.

    The last point is kept, and so are exceptional ones while they are few: those that are not finite, and those that
    are far from the median of their metric.
    """
    steps, values = series.steps, series.values
    # Powers of two, so that the stretches of a sample of a sample are those of all points.
    width = 2.0 ** math.ceil(math.log2(max(steps[-1] - steps[0], 1.0) / SAMPLE))
    kept = np.diff(np.floor(steps / width), prepend=-1.0) > 0
    kept[-1] = True
    finite = np.isfinite(values)
    if finite.any():
        distance = np.abs(values - np.median(values[finite]))
        with np.errstate(invalid="ignore"):
            far = finite & (distance > EXCEPTIONAL_DEVIATIONS * np.median(distance[finite]))
    else:
        far = np.zeros(len(steps), dtype=bool)
    for exceptional in (~finite, far):
        if exceptional.sum() <= SAMPLE // 4:
            kept |= exceptional
    return series.where(kept)


class GrowingSeries:
    """One metric of a run, with its length at each version of the run, so that a page gets only later points.

    Of more than ``CAPACITY`` points only a sample is kept.
    """

    def __init__(self) -> None:
        self._steps, self._values = np.zeros(64), np.zeros(64)
        self._length = 0
        self._is_sample = False
        self._versions: list[int] = []
        self._lengths: list[int] = []

    @property
    def points(self) -> Series:
        """Return the points that are kept; of a sample the latest lie closer together."""
        return Series(self._steps[: self._length], self._values[: self._length])

    @property
    def fair(self) -> Series:
        """Return all points, or a sample that is as dense at the start of the run as at its end."""
        return sample(self.points) if self._is_sample and self._length else self.points

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
        if length > CAPACITY:
            self._is_sample = replaced = True
            points = self.fair
            self._length = len(points)
            self._steps, self._values = (
                np.concatenate([one, np.zeros(CAPACITY)]) for one in (points.steps, points.values)
            )
            self._versions, self._lengths = [], []
        self._versions.append(version)
        self._lengths.append(self._length)
        return replaced

    def cut_back(self, step: float) -> bool:
        """Drop the points after a step; return whether there were any."""
        kept = int(np.searchsorted(self._steps[: self._length], step, side="right"))
        cut, self._length = kept < self._length, kept
        return cut

    def view(
        self,
        after: int | None = None,
        first: float = -math.inf,
        last: float = math.inf,
        limit: int = MAX_POINTS,
    ) -> dict[str, Any] | None:
        """Return the points from step ``first`` to ``last`` for a page, at most ``limit``; ``None`` without any.

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
        kept_steps, kept_values = thin(steps, values, limit)
        return {
            "steps": [int(step) for step in kept_steps],
            "values": [float(f"{value:.6g}") if math.isfinite(value) else None for value in kept_values],
            "thinned": len(kept_steps) < len(steps) or self._is_sample,
        }
