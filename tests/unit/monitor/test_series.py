"""A page gets a bounded number of points, and only those that are new to it."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oddsmith.diagnose.history import Series
from oddsmith.monitor.series import CAPACITY, MAX_POINTS, SAMPLE, GrowingSeries, thin


def test_thinning_keeps_the_extremes():
    steps, values = np.arange(100_000.0), np.sin(np.arange(100_000.0) / 5000)
    values[77_777] = 9.0
    values[33_333] = math.nan
    kept_steps, kept_values = thin(steps, values)
    assert len(kept_steps) <= MAX_POINTS
    assert (np.diff(kept_steps) >= 0).all()
    assert 77_777 in kept_steps
    assert np.nanmin(kept_values) == np.nanmin(values)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.data())
def test_a_page_of_any_version_plus_what_is_new_is_the_whole(sizes, data):
    series, first = GrowingSeries(), 0
    for version, size in enumerate(sizes, 1):
        steps = np.arange(first, first + size, dtype=float)
        assert not series.append(Series(steps, steps * 2), version)
        first += size
    version = data.draw(st.integers(0, len(sizes)))
    had = sum(sizes[:version])
    view = series.view(after=version)
    assert ([] if view is None else view["steps"]) == list(range(had, first))


def test_of_a_long_run_a_fair_sample_is_kept():
    """A million points in pieces: none of its size is kept, and means, medians and what is exceptional stay."""
    random = np.random.default_rng(7)
    steps = np.arange(1, 1_000_001, dtype=float)
    values = 3 - steps / 1e6 + random.normal(0, 0.2, len(steps))
    values[[123_456, 777_777]] = math.nan
    values[[5_000, 600_000]] = 40.0
    series, sizes = GrowingSeries(), []
    for first in range(0, len(steps), 7_919):
        part = slice(first, first + 7_919)
        series.append(Series(steps[part], values[part]), first)
        sizes.append(len(series.points))
    assert max(sizes) <= CAPACITY
    for kept in (series.points, series.fair):
        assert (kept.steps[0], kept.steps[-1]) == (1, 1_000_000)
        assert (np.diff(kept.steps) > 0).all()
        assert set(kept.steps[~np.isfinite(kept.values)]) == {123_457, 777_778}
        assert set(kept.steps[kept.values == 40.0]) == {5_001, 600_001}
    fair = series.fair.finite()
    assert SAMPLE / 2 < len(fair) < 2 * SAMPLE
    count, _ = np.histogram(fair.steps, bins=10, range=(0, 1_000_000))
    assert count.min() > 0.9 * count.max()
    for low in range(0, 1_000_000, 100_000):
        of_sample = fair.where((fair.steps > low) & (fair.steps <= low + 100_000) & (fair.values < 30)).values
        of_all = values[low : low + 100_000]
        assert np.median(of_sample) == pytest.approx(np.nanmedian(of_all), abs=0.02)
        assert of_sample.std() == pytest.approx(np.nanstd(of_all[~(of_all > 30)]), abs=0.02)
    assert series.view()["thinned"]
