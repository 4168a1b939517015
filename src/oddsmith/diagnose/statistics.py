"""Tell trends from noise by rank statistics, which assume nothing about the noise and are not moved by outliers.

- :func:`trend`: Theil-Sen slope with Sen's confidence interval, significance by Mann-Kendall, its variance widened for
  serial correlation. Sources: Sen, J. Am. Stat. Assoc. 63 (1968) 1379; Mann, Econometrica 13 (1945) 245; Bayley and
  Hammersley, J. R. Stat. Soc. Suppl. 8 (1946) 184 for the number of independent points among correlated ones.
- :func:`change_point`: Pettitt, Appl. Statist. 28 (1979) 126.
- :func:`spikes`: Iglewicz and Hoaglin's modified z-score (1993) of logarithms, against a running median.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .history import Series

MAX_POINTS = 200  # longer series are averaged in blocks, because each pair of points is compared
Z_95 = 1.96  # two-sided 95% of a normal distribution
Z_999 = 3.29
MAD_OF_NORMAL = 0.6745  # median absolute deviation of a normal distribution, in standard deviations
MIN_REVERSAL_POINTS = 8
MIN_TREND_POINTS = 5  # fewer cannot reach 95% in a Mann-Kendall test


@dataclass(frozen=True)
class Trend:
    """The change of a series from its first step to its last."""

    change: float  # Theil-Sen slope times the number of steps
    low: float  # of the 95% interval of the change
    high: float
    z: float  # standard score of Kendall's S; above 1.96 or below -1.96 the direction is significant at 95%
    start: int  # first step
    end: int

    @property
    def rises(self) -> bool:
        """Return whether it rises, at 95%."""
        return self.z > Z_95 and self.low > 0

    @property
    def falls(self) -> bool:
        """Return whether it falls, at 95%."""
        return self.z < -Z_95 and self.high < 0


def trend(series: Series) -> Trend | None:
    """Return the trend of a series; ``None`` for fewer than ``MIN_TREND_POINTS`` finite points."""
    series = blocks(series.finite(), MAX_POINTS)
    count = len(series)
    if count < MIN_TREND_POINTS or series.steps[-1] == series.steps[0]:
        return None
    first, second = np.triu_indices(count, k=1)
    rise = series.values[second] - series.values[first]
    slopes = np.sort(rise / (series.steps[second] - series.steps[first]))
    slope = float(np.median(slopes))
    kendall = float(np.sign(rise).sum())
    spread = math.sqrt(_kendall_variance(series.values) * _inflation(series))
    if spread == 0:
        return Trend(0.0, 0.0, 0.0, 0.0, int(series.steps[0]), int(series.steps[-1]))
    span = float(series.steps[-1] - series.steps[0])
    reach = Z_95 * spread / 2  # ranks of the interval below and above the median slope (Sen)
    low = slopes[max(0, math.floor(len(slopes) / 2 - reach))]
    high = slopes[min(len(slopes) - 1, math.ceil(len(slopes) / 2 + reach))]
    z = (kendall - np.sign(kendall)) / spread
    return Trend(slope * span, float(low) * span, float(high) * span, float(z), *map(int, series.steps[[0, -1]]))


def _kendall_variance(values: np.ndarray) -> float:
    """Return the variance of Kendall's S without a trend, ties counted."""
    count = len(values)
    ties = np.unique(values, return_counts=True)[1]
    return float(count * (count - 1) * (2 * count + 5) - (ties * (ties - 1) * (2 * ties + 5)).sum()) / 18


def _inflation(series: Series) -> float:
    """Return the factor of the variance for serially correlated points: (1 + r) / (1 - r) >= 1, r at lag 1.

    r is that of the residuals from a polynomial of at most the third degree: a fast fall that levels out is a trend,
    and must not be taken for correlated noise.
    """
    place = np.linspace(-1.0, 1.0, len(series))
    degree = min(3, 1 + len(series) // 8)
    rest = series.values - np.polyval(np.polyfit(place, series.values, degree), place)
    power = float((rest**2).sum())
    if power <= 1e-24 * float((series.values**2).sum()):
        return 1.0
    lag_1 = min(max(float((rest[1:] * rest[:-1]).sum()) / power, 0.0), 0.9)
    return (1 + lag_1) / (1 - lag_1)


def blocks(series: Series, max_blocks: int) -> Series:
    """Return the means of at most ``max_blocks`` blocks of neighbours."""
    if len(series) <= max_blocks:
        return series
    edges = np.linspace(0, len(series), max_blocks + 1).astype(int)
    parts = [slice(a, b) for a, b in pairwise(edges)]
    return Series(
        np.array([series.steps[part].mean() for part in parts]),
        np.array([series.values[part].mean() for part in parts]),
    )


def smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Return the running median of an odd width, narrower at the ends."""
    half = width // 2
    if len(values) <= width:
        return np.array([np.median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])
    middle = np.median(np.lib.stride_tricks.sliding_window_view(values, 2 * half + 1), axis=1)
    first = [np.median(values[: i + half + 1]) for i in range(half)]
    last = [np.median(values[-(2 * half - i) :]) for i in range(half)]
    return np.concatenate([first, middle, last])


@dataclass(frozen=True)
class Reversal:
    """A series that fell (or rose) and then turned."""

    step: int  # of the turn
    turn: float  # level there
    end: float  # level at the end
    z: float  # standard score of the trend after the turn

    @property
    def change(self) -> float:
        """Return the change from the turn to the end."""
        return self.end - self.turn


def reversal(series: Series, upward: bool) -> Reversal | None:
    """Find a turn for the worse that is more than noise.

    The turn is the extreme of the running median. Every series moves back from its extreme, so the turn needs 99.9%
    significance, at least eight points, and a change of twice the noise. ``upward`` says that rising is the bad
    direction.
    """
    finite, sign = blocks(series.finite(), MAX_POINTS), 1 if upward else -1
    if len(finite) < MIN_REVERSAL_POINTS:
        return None
    smoothed = smooth(finite.values, 5)
    at = int(np.argmin(sign * smoothed))
    tail = finite.since(int(finite.steps[at]))
    after = trend(tail)
    if after is None or len(tail) < MIN_REVERSAL_POINTS or sign * after.z < Z_999:
        return None
    turn, end = float(smoothed[at]), float(np.median(tail.values[-5:]))
    noise = float(np.median(np.abs(finite.values - smoothed))) / MAD_OF_NORMAL
    return Reversal(int(tail.steps[0]), turn, end, after.z) if sign * (end - turn) >= 2 * noise else None


@dataclass(frozen=True)
class ChangePoint:
    """Where the level of a series changes."""

    step: int  # the first of the new level
    before: float  # median
    after: float
    p: float  # probability of so large a change in a series without one


def change_point(series: Series) -> ChangePoint | None:
    """Return the likeliest change of level (Pettitt); ``None`` for fewer than ten points."""
    series = blocks(series.finite(), MAX_POINTS)
    count = len(series)
    if count < 10:
        return None
    signs = np.sign(series.values[:, None] - series.values[None, :])
    scores = np.abs([signs[:i, i:].sum() for i in range(1, count)])
    at = int(np.argmax(scores)) + 1
    p = min(1.0, 2 * math.exp(-6 * float(scores.max()) ** 2 / (count**3 + count**2)))
    before, after = np.median(series.values[:at]), np.median(series.values[at:])
    return ChangePoint(int(series.steps[at]), float(before), float(after), p)


def spikes(series: Series, min_ratio: float, min_z: float, width: int = 11) -> Series:
    """Return the points above ``min_ratio`` times the running median and above ``min_z`` robust deviations."""
    finite = series.finite()
    positive = finite.where(finite.values > 0)
    if len(positive) < width:
        return positive.where(np.zeros(len(positive), dtype=bool))
    logs = np.log(positive.values)
    rest = logs - smooth(logs, width)
    deviation = float(np.median(np.abs(rest - np.median(rest)))) / MAD_OF_NORMAL or 1e-12
    return positive.where((rest > math.log(min_ratio)) & (rest / deviation > min_z))


def start_and_end(series: Series) -> tuple[float, float] | None:
    """Return the medians of the first and the last tenth (three points or more); ``None`` for fewer than six points."""
    finite = series.finite()
    if len(finite) < 6:
        return None
    count = max(3, len(finite) // 10)
    return float(np.median(finite.values[:count])), float(np.median(finite.values[-count:]))


def mean_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Return the mean and its 95% interval by the standard error; infinitely wide for fewer than three values."""
    mean = float(values.mean())
    if len(values) < 3:
        return mean, -math.inf, math.inf
    reach = Z_95 * float(values.std(ddof=1)) / math.sqrt(len(values))
    return mean, mean - reach, mean + reach
