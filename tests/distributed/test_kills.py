"""Sharded runs of which one process is killed, or all, end like undisturbed ones."""

import pytest

from tests.killed_runs import SHARDED
from tests.kills import Trials

from .test_table import require_installed

pytestmark = [pytest.mark.slow, pytest.mark.distributed, pytest.mark.exhaustive]


@pytest.mark.parametrize(
    "variant", SHARDED, ids=lambda variant: variant.kind + "-beside" * variant.settings["async_save"]
)
def test_a_killed_run_ends_like_the_undisturbed_one(variant, tmp_path):
    require_installed(variant.kind)
    trials = Trials(variant, tmp_path / "runs")
    trial = trials.run("killed", kills=3, aims=("saving", "training", None))
    assert trial.wrong == []
    assert trial.kills
