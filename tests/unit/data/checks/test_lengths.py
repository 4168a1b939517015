"""Length bias is Cohen's d or one rule of length, and needs enough pairs."""

import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oddsmith.data.checks.lengths import LengthSums

lengths = st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 5000)), min_size=2, max_size=60)


def counted(pairs):
    sums = LengthSums()
    for pair in pairs:
        sums.count(*pair)
    return sums


@given(lengths, lengths)
def test_lengths_of_parts_add_up(first, second):
    parts = counted(first)
    parts.add(counted(second))
    assert parts == counted(first + second)


@given(lengths)
def test_the_effect_is_cohens_d(pairs):
    chosen, rejected = zip(*pairs, strict=True)
    variance = (statistics.pvariance(chosen) + statistics.pvariance(rejected)) / 2
    if not variance:
        assert counted(pairs).effect is None
        return
    expected = (statistics.fmean(chosen) - statistics.fmean(rejected)) / variance**0.5
    assert counted(pairs).effect == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_length_bias_warns_of_what_is_large_and_certain():
    generator = random.Random(0)
    fair = [(generator.randint(50, 150), generator.randint(50, 150)) for _ in range(400)]
    longer = [(chosen + 60, rejected) for chosen, rejected in fair]
    assert counted(fair).finding("tokens").verdict == "pass"
    assert counted(longer).finding("tokens").verdict == "warn"
    assert '"the longer one is better" is right in' in counted(longer).finding("tokens").found
    assert counted([(short, long) for long, short in longer]).finding("tokens").meaning.count('"shorter"') == 1
    assert counted(longer[:5]).finding("tokens").verdict == "pass"  # five pairs say nothing
    always = [(rejected + 3, rejected) for _, rejected in fair]  # a small effect, and yet the only lesson
    assert counted(always).effect < 0.5
    assert counted(always).finding("tokens").verdict == "warn"
