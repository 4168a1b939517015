"""How long each process waits for the slowest one, and what it computes."""

import time
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerState

from oddsmith.system.peaks import peak_operations
from oddsmith.training.pace import Pace, Stage
from oddsmith.training.trainable import needed_share
from tests.tiny import tiny_model

ARGS = SimpleNamespace(device=torch.device("cpu"), world_size=2)


def begun(*, is_sharded: bool = False) -> Pace:
    pace = Pace(is_sharded=lambda: is_sharded)
    pace.on_train_begin(ARGS, TrainerState(), None)
    return pace


def test_shares_are_summed_over_steps():
    """Seconds of two ranks in two steps: 1, 3 and 4, 2; the first waits for 2 s and the second for 2 s, of 10."""
    pace = begun()
    pace._own_s = [1.0, 4.0]
    pace.add_operations(5)
    operations, shares = pace.read(10.0, lambda own: torch.cat([own, torch.tensor([[7.0, 3.0, 2.0]])]))
    assert operations == 12
    assert shares == pytest.approx([0.2, 0.2])
    assert pace.read(10.0, lambda own: own) == (0, None)


def test_a_step_ends_with_the_backward_pass():
    pace, weight = begun(), torch.ones(1, requires_grad=True)
    loss = (weight * 2).sum()
    pace.watch_backward(loss)
    time.sleep(0.1)
    loss.backward()
    assert pace.place.stage == Stage.EXCHANGING
    time.sleep(0.2)
    pace.on_step_end(ARGS, TrainerState(), None)
    assert 0.1 <= pace._own_s[0] < 0.2


def test_a_sharded_step_ends_where_the_first_layer_waits():
    pace = begun(is_sharded=True)
    time.sleep(0.1)
    pace.begin_micro_batch(1, 1)
    time.sleep(0.2)
    pace.on_step_end(ARGS, TrainerState(), None)
    assert 0.1 <= pace._own_s[0] < 0.2


def test_a_step_without_a_backward_pass_of_ours_gives_no_share():
    pace = begun()
    pace.on_step_end(ARGS, TrainerState(), None)
    assert pace.read(1.0, lambda own: torch.cat([own, own])) == (0, None)


def test_only_a_step_after_the_first_is_limited_in_time():
    pace = begun()
    pace.load_batches(1)
    assert not pace.place.is_limited
    pace.on_step_end(ARGS, TrainerState(global_step=1), None)
    assert not pace.place.is_limited
    pace.load_batches(2)
    assert pace.place.is_limited
    assert pace.place.step == 2


def test_the_last_batch_of_an_evaluation_may_take_long():
    pace = begun()
    pace.on_step_end(ARGS, TrainerState(global_step=1), None)
    found = []
    for _ in range(3):
        pace.on_prediction_step(ARGS, TrainerState(), None, eval_dataloader=[1, 2, 3])
        found.append(pace.place.is_limited)
    assert found == [True, True, False]


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H100 NVL", 835), ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-40GB", 312), ("NVIDIA A10", 125), ("Tesla V100-SXM2-32GB", 125), ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165), ("AMD Instinct MI300X", 1307),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None), ("NVIDIA GeForce RTX 4090 D", None), ("NVIDIA A10G", None),
        ("NVIDIA GeForce RTX 3090 Ti", None), ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", None), ("Fake", None),
    ],
)  # fmt: skip
def test_peaks_are_those_of_the_gpu(name, tera):
    assert peak_operations(name) == (None if tera is None else tera * 1e12)


def test_frozen_weights_take_four_operations_a_token():
    model = tiny_model()
    assert needed_share(model) == 1
    for weight in model.parameters():
        weight.requires_grad = False
    assert needed_share(model) == pytest.approx(4 / 6)
