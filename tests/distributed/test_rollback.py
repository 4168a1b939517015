"""A roll-back under each kind of sharding: weights and the optimizer's state are those of the checkpoint."""

from functools import cache

import pytest
import torch

from .kinds import KINDS
from .launch import launch
from .test_table import EXACT, require_installed, weights_in
from .test_worlds import ADAM
from .worker import life

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

CASES = {"full": {}, "lora": {"lora": True}}
FEW = [("zero-2", "full")]  # for continuous integration


def case(kind: str, name: str) -> dict:
    """Return a run that makes three steps, goes back to the second, and makes another one."""
    settings = {**ADAM, "eval_strategy": "no", **KINDS[kind]}
    return {"rolls_back": {"after": 3, "to": 2}, "settings": settings, **CASES[name]}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Return the weights that one process ends with."""
    folder = tmp_path_factory.mktemp("alone")

    @cache
    def of(name: str) -> dict[str, torch.Tensor]:
        life(folder / name, case("ddp", name), processes=1)
        return weights_in(folder / name / "run")

    return of


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(kind, name, marks=[] if (kind, name) in FEW else [pytest.mark.exhaustive])
        for kind in KINDS
        for name in CASES
    ],
)
def test_the_steps_after_it_are_those_of_one_process(tmp_path, alone, kind, name):
    require_installed(kind)
    found = launch(tmp_path / "runs", {name: case(kind, name)})
    assert [rank for rank in found[name] if "error" in rank] == []
    weights = weights_in(tmp_path / "runs" / name / "run")
    assert weights.keys() == alone(name).keys()
    for key, weight in weights.items():
        torch.testing.assert_close(weight, alone(name)[key], rtol=0, atol=EXACT)
