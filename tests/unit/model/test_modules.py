"""Walking through a model, and its training mode: the same as torch's, in less time."""

import pytest
import torch
from torch import nn

from oddsmith.model.modules import in_training_mode, modules_of
from tests.tiny import tiny_model


class Branching(nn.Module):
    """Modules that are shared, nested and missing."""

    def __init__(self):
        super().__init__()
        shared = nn.Linear(2, 2)
        self.first = nn.Sequential(shared, nn.ModuleDict({"a": nn.Dropout(), "b": shared}))
        self.register_module("none", None)
        self.second = nn.ModuleList([nn.Sequential(), shared, nn.ReLU()])
        self.itself = self.second


@pytest.mark.parametrize("model", [Branching(), tiny_model(), nn.ReLU()], ids=["branching", "tiny", "leaf"])
def test_the_walk_gives_the_modules_in_torch_s_order(model):
    assert [id(module) for module in modules_of(model)] == [id(module) for module in model.modules()]


class Counted(Branching):
    """Counts how often its training mode is set."""

    calls = 0

    def train(self, mode=True):
        self.calls += mode
        return super().train(mode)


def test_the_training_mode_is_set_once():
    model = Counted().eval()
    for _ in range(2):
        with in_training_mode(model):
            assert all(module.training for module in model.modules())
            assert model.train().train(True) is model
    assert model.calls == 1
    assert "train" not in vars(model)


def test_a_part_that_is_not_in_training_mode_is_set_too():
    model = Counted().train()
    model.first[1]["a"].eval()
    with in_training_mode(model):
        assert model.first[1]["a"].training
        model.eval()  # as generating does
        assert not any(module.training for module in model.modules())
        model.train()
        assert all(module.training for module in model.modules())
    assert model.calls == 3


def test_a_replaced_method_comes_back():
    model = Counted()
    vars(model)["train"] = replaced = lambda mode=True: model
    with in_training_mode(model), torch.no_grad():
        pass
    assert vars(model).pop("train") is replaced
