"""Is it a trend or noise? Rank statistics: no assumption on the noise, and single outliers move nothing.

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

# A series of more points is averaged in blocks to this many: pairs of points are compared, each with each.
MOST_POINTS = 200
Z_95 = 1.96  # two-sided 95% of a normal distribution
Z_999 = 3.29
MAD_OF_NORMAL = 0.6745  # median absolute deviation of a normal distribution, in standard deviations
LEAST_REVERSAL_POINTS = 8
LEAST_TREND_POINTS = 5  # fewer cannot reach 95% in a Mann-Kendall test, whatever they show


@dataclass(frozen=True)
class Trend:
    """How a series moves from its first step to its last.

    Args:
        change: Theil-Sen slope times the number of steps.
        low, high: Its 95% confidence interval.
        z: Standard score of Kendall's S; above 1.96 or below -1.96 the direction is certain at 95%.
        start, end: The line's ends, as steps.
    """

    change: float
    low: float
    high: float
    z: float
    start: int
    end: int

    @property
    def rises(self) -> bool:
        """Whether it goes up, at 95%."""
        return self.z > Z_95 and self.low > 0

    @property
    def falls(self) -> bool:
        """Whether it goes down, at 95%."""
        return self.z < -Z_95 and self.high < 0


def trend(series: Series) -> Trend | None:
    """The trend of a series; ``None`` for fewer than ``LEAST_TREND_POINTS`` finite points."""
    series = blocks(series.finite(), MOST_POINTS)
    count = len(series)
    if count < LEAST_TREND_POINTS or series.steps[-1] == series.steps[0]:
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
    reach = Z_95 * spread / 2  # ranks below and above the median slope that the interval takes in (Sen)
    low = slopes[max(0, math.floor(len(slopes) / 2 - reach))]
    high = slopes[min(len(slopes) - 1, math.ceil(len(slopes) / 2 + reach))]
    z = (kendall - np.sign(kendall)) / spread
    return Trend(slope * span, float(low) * span, float(high) * span, float(z), *map(int, series.steps[[0, -1]]))


def _kendall_variance(values: np.ndarray) -> float:
    """Variance of Kendall's S without a trend, ties counted."""
    count = len(values)
    ties = np.unique(values, return_counts=True)[1]
    return float(count * (count - 1) * (2 * count + 5) - (ties * (ties - 1) * (2 * ties + 5)).sum()) / 18


def _inflation(series: Series) -> float:
    """How many times wider the variance is for points that follow one another: (1 + r) / (1 - r), r at lag 1, >= 1.

    r is that of what is left without the curve's own bend (a polynomial of at most the third degree): a fast fall that
    levels out is a trend, and must not pass for noise that follows itself.
    """
    place = np.linspace(-1.0, 1.0, len(series))
    degree = min(3, 1 + len(series) // 8)
    rest = series.values - np.polyval(np.polyfit(place, series.values, degree), place)
    power = float((rest**2).sum())
    if power <= 1e-24 * float((series.values**2).sum()):
        return 1.0
    lag_1 = min(max(float((rest[1:] * rest[:-1]).sum()) / power, 0.0), 0.9)
    return (1 + lag_1) / (1 - lag_1)


def blocks(series: Series, most: int) -> Series:
    """The means of at most ``most`` blocks of neighbours."""
    if len(series) <= most:
        return series
    edges = np.linspace(0, len(series), most + 1).astype(int)
    parts = [slice(a, b) for a, b in pairwise(edges)]
    return Series(
        np.array([series.steps[part].mean() for part in parts]),
        np.array([series.values[part].mean() for part in parts]),
    )


def smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Running median of an odd width, narrower at the ends."""
    half = width // 2
    if len(values) <= width:
        return np.array([np.median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])
    middle = np.median(np.lib.stride_tricks.sliding_window_view(values, 2 * half + 1), axis=1)
    first = [np.median(values[: i + half + 1]) for i in range(half)]
    last = [np.median(values[-(2 * half - i) :]) for i in range(half)]
    return np.concatenate([first, middle, last])


def after_turn(series: Series, upward: bool, width: int = 5) -> Series:
    """What comes after the lowest point (``upward``) or the highest, of the running median: where a reversal begins."""
    finite = series.finite()
    if len(finite) == 0:
        return finite
    smoothed = smooth(finite.values, width)
    return finite.since(int(finite.steps[int(np.argmin(smoothed) if upward else np.argmax(smoothed))]))


@dataclass(frozen=True)
class Reversal:
    """A series that came down (or went up) and then turned.

    Args:
        step: Where it turned.
        turn: Its level there.
        end: Its level at the end.
        z: Certainty of the way back.
    """

    step: int
    turn: float
    end: float
    z: float

    @property
    def change(self) -> float:
        """From the turn to the end."""
        return self.end - self.turn


def reversal(series: Series, upward: bool) -> Reversal | None:
    """A turn for the worse that is more than noise.

    The turn is chosen as the extreme of the running median, which by itself makes what follows look like a way back;
    so 99.9% are asked for, of at least eight points, and a change of twice the noise.

    Args:
        series: The series.
        upward: Whether rising is the bad direction.

    Returns:
        The reversal, or ``None``.
    """
    finite = blocks(series.finite(), MOST_POINTS)
    tail = after_turn(finite, upward)
    found = trend(tail)
    if found is None or len(tail) < LEAST_REVERSAL_POINTS or found.z * (1 if upward else -1) < Z_999:
        return None
    smoothed = smooth(finite.values, 5)
    turn, end = float(np.min(smoothed) if upward else np.max(smoothed)), float(np.median(tail.values[-5:]))
    noise = float(np.median(np.abs(finite.values - smoothed))) / MAD_OF_NORMAL
    if (end - turn) * (1 if upward else -1) < 2 * noise:
        return None
    return Reversal(int(tail.steps[0]), turn, end, found.z)


@dataclass(frozen=True)
class ChangePoint:
    """Where the level of a series changes.

    Args:
        step: The first step of the new level.
        before, after: Median of either side.
        p: Chance of so large a change in a series that has none.
    """

    step: int
    before: float
    after: float
    p: float


def change_point(series: Series) -> ChangePoint | None:
    """The likeliest change of level (Pettitt); ``None`` for fewer than ten points."""
    series = blocks(series.finite(), MOST_POINTS)
    count = len(series)
    if count < 10:
        return None
    signs = np.sign(series.values[:, None] - series.values[None, :])
    scores = np.abs([signs[:i, i:].sum() for i in range(1, count)])
    at = int(np.argmax(scores)) + 1
    p = min(1.0, 2 * math.exp(-6 * float(scores.max()) ** 2 / (count**3 + count**2)))
    before, after = np.median(series.values[:at]), np.median(series.values[at:])
    return ChangePoint(int(series.steps[at]), float(before), float(after), p)


def spikes(series: Series, least_ratio: float, least_z: float, width: int = 11) -> Series:
    """Points that stand out upwards: ``least_ratio`` times the running median, and ``least_z`` robust deviations."""
    finite = series.finite()
    positive = finite.where(finite.values > 0)
    if len(positive) < width:
        return positive.where(np.zeros(len(positive), dtype=bool))
    logs = np.log(positive.values)
    rest = logs - smooth(logs, width)
    deviation = float(np.median(np.abs(rest - np.median(rest)))) / MAD_OF_NORMAL or 1e-12
    return positive.where((rest > math.log(least_ratio)) & (rest / deviation > least_z))


def start_and_end(series: Series) -> tuple[float, float] | None:
    """Median of the first and of the last tenth (at least three points); ``None`` for fewer than six points."""
    finite = series.finite()
    if len(finite) < 6:
        return None
    count = max(3, len(finite) // 10)
    return float(np.median(finite.values[:count])), float(np.median(finite.values[-count:]))


def mean_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean, and its 95% confidence interval by the standard error; infinitely wide for fewer than three values."""
    mean = float(values.mean())
    if len(values) < 3:
        return mean, -math.inf, math.inf
    reach = Z_95 * float(values.std(ddof=1)) / math.sqrt(len(values))
    return mean, mean - reach, mean + reach
