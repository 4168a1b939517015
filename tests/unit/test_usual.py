"""The table of usual settings: a rule for every run, and none that is never reached."""

import itertools
from math import inf

import pytest

from oddsmith.usual import ADAPTERS, FULL, RULES, rule_for

SIZES = (0, 1e6, 1.35e8, 5e8, 2e9, 5e9, 7e9, 1e12, inf)
ROWS = (0, 1, 60, 1_999, 2_000, 9_999, 10_000, 1e9, inf)
RUNS = list(itertools.product(SIZES, ROWS, (FULL, *ADAPTERS)))


@pytest.mark.parametrize("setting", dict.fromkeys(rule.setting for rule in RULES))
def test_every_run_has_a_rule_and_every_rule_a_run(setting):
    found = {rule_for(setting, parameters=size, rows=rows, training=how) for size, rows, how in RUNS}
    assert found == {rule for rule in RULES if rule.setting == setting}


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.usual], ids=lambda rule: rule.condition)
def test_what_is_advised_is_usual(rule):
    assert rule.usual[0] <= rule.value <= rule.usual[1]


def test_the_authors_advice_on_beta_is_followed():
    """github.com/xfactlab/orpo/issues/5: 0.5 to 1.0 for small models, 0.05 to 0.1 for 7B."""
    assert 0.5 <= rule_for("beta", parameters=1.35e8).value <= 1.0
    assert rule_for("beta", parameters=1.3e9).usual[1] == 1.0
    assert 0.05 <= rule_for("beta", parameters=7e9).value <= 0.1
