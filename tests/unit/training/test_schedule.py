"""Optimizer and learning rate of a resumed run that has become another; the position in a stream."""

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from oddsmith.training.epochs import epoch_of_length
from oddsmith.training.schedule import follow_schedule, line_about, load_states


def run(steps: int, rate: float = 1.0, done: int = 0, **options):
    """An optimizer, and a schedule that falls to 0 at the last step."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=rate, **options)
    schedule = LambdaLR(optimizer, lambda step: max(0.0, 1 - step / steps))
    for _ in range(done):
        optimizer.step()
        schedule.step()
    return optimizer, schedule


def states(steps: int, done: int, **options):
    optimizer, schedule = run(steps, done=done, **options)
    return optimizer.state_dict(), schedule.state_dict()


def test_the_next_step_has_the_rate_of_the_new_length():
    optimizer, schedule = run(8)
    load_states(optimizer, schedule, states(4, done=4), changed=["max_steps"])
    assert optimizer.param_groups[0]["lr"] == 0
    assert follow_schedule(optimizer, schedule) == (0, 0.5)
    assert optimizer.param_groups[0]["lr"] == schedule.get_last_lr()[0] == 0.5
    optimizer.step()
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == 1 - 5 / 8


def test_settings_that_have_changed_are_those_of_the_run():
    saved = states(4, done=2, rate=1.0, weight_decay=0.0, eps=1e-8)
    optimizer, schedule = run(4, rate=2.0, weight_decay=0.1, eps=1e-6)
    load_states(optimizer, schedule, saved, changed=["learning_rate", "weight_decay"])
    (group,) = optimizer.param_groups
    assert (group["weight_decay"], group["eps"], schedule.base_lrs) == (0.1, 1e-8, [2.0])
    assert follow_schedule(optimizer, schedule) == (0.5, 1.0)


def test_what_was_set_while_training_stays():
    saved = states(4, done=2)
    saved[1]["base_lrs"] = [3.0]
    optimizer, schedule = run(4)
    load_states(optimizer, schedule, saved, changed=[])
    assert schedule.base_lrs == [3.0]


def test_a_schedule_that_is_no_function_of_the_step_is_left_alone():
    optimizer, _ = run(4)
    assert follow_schedule(optimizer, ReduceLROnPlateau(optimizer)) is None


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((4, 4, "linear", (0.5, 0.5)), None),
        ((4, 4, "linear", None), None),
        ((4, 8, "linear", (0.0, 0.5)), "the run has 8 steps now instead of 4; its learning rate follows linear over 8"
         " steps from here on: 0.5, not 0"),
        ((4, 8, "constant", (0.5, 0.5)), "the run has 8 steps now instead of 4; its learning rate (constant) goes on at"
         " 0.5"),
        ((4, 8, "reduce_lr_on_plateau", None), "the run has 8 steps now instead of 4; its learning rate goes on as"
         " reduce_lr_on_plateau says"),
    ],
)  # fmt: skip
def test_what_is_said(arguments, line):
    assert line_about(*arguments) == line


@pytest.mark.parametrize(
    ("epoch", "then", "now", "expected"),
    [
        (0.5, 12, 12, 0.5),
        (0.5, 12, 24, 0.25),  # 6 steps
        (1.0, 6, 12, 0.5),  # all 6 steps were made in the first pass
        (1.0, 6, 6, 1.0),  # and the run is over
        (2 + 3 / 9, 9, 18, 2 + 3 / 18),  # 3 steps in the third pass
        (0.0, 6, 12, 0.0),
    ],
)
def test_the_position_in_a_stream_is_a_share_of_the_new_length(epoch, then, now, expected):
    assert epoch_of_length(epoch, then, now) == pytest.approx(expected)
