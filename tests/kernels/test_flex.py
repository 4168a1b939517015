"""FlexAttention as a GPU would compile it, on cards that are not here (`make test-kernels`)."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is there on Linux alone")

from tests.fake_gpu.guard import NoGuard, compiled

from .cards import CARDS

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.cards, pytest.mark.timeout(1800)]


def flex(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.flex", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    return [line.rsplit(maxsplit=1) for line in done.stdout.splitlines()]


@pytest.fixture(autouse=True)
def guard(tmp_path_factory):
    try:
        compiled(tmp_path_factory.getbasetemp())
    except NoGuard as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("card", CARDS, ids=str)
def test_forward_and_backward_fit_each_card(card):
    flex("needs", str(card))


def test_one_graph_serves_all_forests():
    """For training and for evaluation, times two sizes of heads."""
    assert flex("graphs") == [["plain", "4"], ["soft cap", "4"], ["sinks", "4"]]


def test_a_soft_cap_keeps_as_many_bytes_a_token_in_long_rows():
    kept = {int(tokens): float(per_token) for tokens, per_token in flex("kept")}
    assert max(kept) > 8000
    assert max(kept.values()) < 1.05 * min(kept.values())
