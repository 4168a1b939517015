"""A page gets a bounded number of points, and only those that are new to it."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from oddsmith.diagnose.history import Series
from oddsmith.monitor.series import MAX_POINTS, GrowingSeries, thin


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
