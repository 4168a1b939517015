"""States that runs of every kind write pass the checks for states of strangers."""

import json
import sys

import pytest
import torch
from transformers import TrainerState
from transformers.optimization import get_scheduler

from oddsmith.checkpoint.values import read_trainer_state, require_attributes, require_group, require_optimizer_state
from oddsmith.errors import CheckpointError
from oddsmith.system.run_folder import TRAINER_STATE_FILE

SCHEDULES = {
    "linear": {}, "cosine": {}, "constant": {}, "polynomial": {}, "inverse_sqrt": {}, "reduce_lr_on_plateau": {},
    "cosine_with_min_lr": {"min_lr": 1e-6}, "warmup_stable_decay": {"num_decay_steps": 3},
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_state_of_each_schedule_passes(name):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    scheduler = get_scheduler(name, optimizer, 2, 10, scheduler_specific_kwargs=SCHEDULES[name])
    state = json.loads(json.dumps(scheduler.state_dict()))
    require_group(state, scheduler.state_dict())


@pytest.mark.parametrize("name", ("AdamW", "SGD", "Adafactor", "RMSprop", "NAdam", "RAdam", "Adagrad", "Adamax"))
def test_the_state_of_each_optimizer_of_torch_passes(name):
    first, second = ([torch.nn.Parameter(torch.ones(4, 6))] for _ in range(2))
    made = getattr(torch.optim, name)(first, lr=0.1)
    first[0].square().sum().backward()
    made.step()
    require_optimizer_state(made.state_dict(), getattr(torch.optim, name)(second, lr=0.1))


@pytest.mark.parametrize(
    ("field", "value"),
    (("num_train_epochs", sys.maxsize), ("best_metric", float("inf")), ("best_metric", float("-inf"))),
    ids=("a stream", "no result yet", "no result yet, greater is better"),
)
def test_what_transformers_writes_without_an_end_or_a_result_passes(tmp_path, field, value):
    state = TrainerState(global_step=2, max_steps=4, **{field: value})
    state.save_to_json(str(tmp_path / TRAINER_STATE_FILE))
    assert getattr(read_trainer_state(tmp_path, 2), field) == value


def test_the_best_result_is_a_number(tmp_path):
    TrainerState(global_step=2, best_metric=float("nan")).save_to_json(str(tmp_path / TRAINER_STATE_FILE))
    with pytest.raises(CheckpointError, match="best_metric"):
        read_trainer_state(tmp_path, 2)


def test_attributes_of_a_callback_may_have_grown_and_not_changed_their_type():
    made = {"history": [], "by_name": {}, "best": None, "patience": 0}
    require_attributes({"history": [0.5, 0.4], "by_name": {"a": 1}, "best": {"step": 3}, "patience": 2}, made)
    for name, value in (("history", 5), ("by_name", []), ("patience", "x")):
        with pytest.raises(TypeError, match=name):
            require_attributes({name: value}, made)
