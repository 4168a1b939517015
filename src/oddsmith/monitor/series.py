"""What a page gets of a metric: at most so many points of any range, or only those that are new to it."""

from __future__ import annotations

import math
from bisect import bisect_right
from itertools import pairwise
from typing import Any

import numpy as np

from ..diagnose.history import Series

MOST_POINTS = 2000


def thin(steps: np.ndarray, values: np.ndarray, most: int = MOST_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most ``most`` points that look like all of them: the lowest and the highest of each stretch.

    Args:
        steps: [P], ascending.
        values: [P]; of a stretch without any number its first point is kept.
        most: How many points may be left; even.

    Returns:
        Steps and values of the points that stay.
    """
    if len(steps) <= most:
        return steps, values
    edges = np.linspace(0, len(steps), most // 2 + 1).astype(int)
    kept: list[int] = []
    for first, end in pairwise(edges):
        part = values[first:end]
        if np.isnan(part).all():
            kept.append(first)
        else:
            kept += sorted({first + int(np.nanargmin(part)), first + int(np.nanargmax(part))})
    return steps[kept], values[kept]


class GrowingSeries:
    """One metric of a run that may go on.

    It remembers how long it was at each version of the run, so that a page that knows one gets what came after it.
    """

    def __init__(self) -> None:
        self._steps, self._values = np.zeros(64), np.zeros(64)
        self._length = 0
        self._versions: list[int] = []
        self._lengths: list[int] = []

    @property
    def whole(self) -> Series:
        """All points."""
        return Series(self._steps[: self._length], self._values[: self._length])

    def append(self, added: Series, version: int) -> bool:
        """Add points; those from the first new step on that were there before are replaced.

        Args:
            added: Ascending steps.
            version: The version of the run that they belong to.

        Returns:
            Whether any were replaced, as after a resume.
        """
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
        """Leave out what comes after a step.

        Args:
            step: The last that stays.

        Returns:
            Whether there was anything.
        """
        kept = int(np.searchsorted(self._steps[: self._length], step, side="right"))
        cut, self._length = kept < self._length, kept
        return cut

    def view(self, after: int | None = None, first: float = -math.inf, last: float = math.inf) -> dict[str, Any] | None:
        """Points for a page, thinned.

        Args:
            after: Leave out what a page of this version has.
            first: From this step on.
            last: Up to this step.

        Returns:
            ``steps`` and ``values`` (``None`` where there is no number), and whether points were left out
            (``thinned``); ``None`` where nothing is new.
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
