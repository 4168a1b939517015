"""What a plan says that a rank holds, against two processes that have trained."""

import pytest

from oddsmith.planning.ranks import DDP, FSDP2, ZERO_2, ZERO_3, Sharing, weight_sizes
from tests.tiny import tiny_model

from .kinds import KINDS
from .launch import launch

pytestmark = [pytest.mark.slow, pytest.mark.distributed, pytest.mark.exhaustive]

SHAPE = {"hidden_size": 64, "intermediate_size": 160}
ADAM = {"optim": "adamw_torch", "max_steps": 1, "eval_strategy": "no", "save_strategy": "no"}
PLANNED = {"ddp": DDP, "fsdp-full": FSDP2, "zero-2": ZERO_2, "zero-3": ZERO_3}


@pytest.fixture(scope="module")
def lives(tmp_path_factory):
    """Return what the processes of each kind found."""
    cases = {kind: {"settings": {**ADAM, **KINDS[kind]}, "model": SHAPE} for kind in PLANNED}
    return launch(tmp_path_factory.mktemp("plan") / "few", cases)


@pytest.mark.parametrize("kind", PLANNED)
def test_a_rank_holds_the_weights_and_states_that_the_plan_says(lives, kind):
    sizes = weight_sizes(tiny_model(**SHAPE), optim="adamw_torch")
    held = Sharing(PLANNED[kind], 2, on_gpu=False).held(sizes, 4)
    master = 4 * sizes.trained_numbers / 2 if kind == "zero-2" else 0  # beside the parameters
    for found in lives[kind]:
        assert "error" not in found, found
        assert found["held"]["weights"] == pytest.approx(held.weights - master, rel=0.02)
        assert found["held"]["optimizer"] == pytest.approx(held.optimizer, rel=0.02)
