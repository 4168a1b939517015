"""Trends, turns, changes of level and spikes, against values worked out by hand and the certainty they promise."""

import numpy as np
import pytest

from oddsmith.diagnose.history import Series
from oddsmith.diagnose.statistics import blocks, change_point, mean_interval, reversal, spikes, start_and_end, trend


def series(values) -> Series:
    values = np.asarray(values, dtype=float)
    return Series(np.arange(len(values), dtype=float), values)


def test_the_trend_of_a_straight_line_is_its_rise():
    found = trend(series([0, 1, 2, 3, 4, 5]))
    assert (found.change, found.low, found.high) == (5.0, 5.0, 5.0)
    # S = 15 pairs, all rising; variance 6 * 5 * 17 / 18 = 28.33; (15 - 1) / 5.323 = 2.63
    assert found.z == pytest.approx(2.63, abs=0.005)
    assert found.rises
    assert not found.falls


def test_an_outlier_moves_no_trend():
    values = list(np.linspace(3, 2, 40))
    values[-1] = 1e6
    assert trend(series(values)).falls


def test_too_few_points_are_no_trend():
    assert trend(series([1, 2, 3, 4])) is None
    assert trend(series([np.nan] * 30)) is None


def test_a_constant_has_no_direction():
    found = trend(series([2.0] * 20))
    assert (found.change, found.z) == (0.0, 0.0)


@pytest.mark.parametrize("correlation", [0.0, 0.6])
def test_noise_passes_for_a_trend_as_rarely_as_promised(correlation):
    """5% at most are promised; among 400 series that is up to 7% with a probability of 97%."""
    generator = np.random.default_rng(0)
    wrong = 0
    for _ in range(400):
        values = generator.normal(size=60)
        for i in range(1, 60):
            values[i] += correlation * values[i - 1]
        found = trend(series(values))
        wrong += found.rises or found.falls
    assert wrong <= (28 if correlation == 0 else 60)  # correlated noise is widened for, not fully: 15%


def test_the_confidence_interval_holds_the_true_change():
    generator = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        found = trend(series(np.linspace(0, 1, 50) + generator.normal(0, 0.3, 50)))
        held += found.low <= 1.0 <= found.high
    assert held >= 180


def test_a_turn_is_found_where_it_is():
    noise = np.random.default_rng(0).normal(0, 0.03, 60)
    values = np.concatenate([np.linspace(3, 1, 30), np.linspace(1, 2, 30)]) + noise
    found = reversal(series(values), upward=True)
    assert abs(found.step - 30) <= 4
    assert found.change == pytest.approx(1.0, abs=0.15)
    assert reversal(series(-values), upward=False).change == pytest.approx(-1.0, abs=0.15)
    assert reversal(series(values[:35]), upward=True) is None


def test_a_change_of_level_is_found_where_it_is():
    values = [10.0] * 20 + [5.0] * 20
    found = change_point(series(values))
    assert (found.step, found.before, found.after) == (20, 10.0, 5.0)
    # K = 20 * 20; p = 2 exp(-6 * 400^2 / (40^3 + 40^2))
    assert found.p == pytest.approx(2 * np.exp(-6 * 400**2 / (40**3 + 40**2)))
    assert change_point(series([1.0] * 5)) is None


def test_spikes_stand_out_by_ratio_and_by_spread():
    values = list(1 + 0.1 * np.random.default_rng(0).normal(size=50))
    values[30] = 8.0
    assert list(spikes(series(values), 5.0, 6.0).steps) == [30]
    wild = np.exp(np.random.default_rng(0).normal(0, 1.2, 50))  # five times the median is usual here
    assert len(spikes(series(wild), 5.0, 6.0)) == 0


def test_blocks_average_neighbours():
    found = blocks(series(range(10)), 5)
    assert list(found.values) == [0.5, 2.5, 4.5, 6.5, 8.5]
    assert len(blocks(series(range(3)), 5)) == 3


def test_levels_and_intervals():
    assert start_and_end(series([1, 2, 3, 10, 11, 12])) == (2.0, 11.0)
    assert start_and_end(series([1, 2])) is None
    mean, low, high = mean_interval(np.array([0.4, 0.5, 0.6]))
    assert mean == pytest.approx(0.5)
    assert high - low == pytest.approx(2 * 1.96 * 0.1 / 3**0.5)
