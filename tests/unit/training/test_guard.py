"""What becomes of a step: decided by its loss, by whether its numbers are finite, and by the steps before it."""

import json
from math import inf, nan, sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oddsmith.training.guard import MIN_STEPS, SIGMAS, WINDOW_STEPS, Decision, StepJudge

TRAIN, WARN, SKIP, ROLL_BACK, STOP = Decision

# (loss, whether it is finite)
steps = st.lists(
    st.one_of(st.tuples(st.floats(0, 20), st.just(True)), st.tuples(st.sampled_from([nan, inf, 1.0]), st.just(False))),
    max_size=300,
)


def quiet(guard: StepJudge, count: int = WINDOW_STEPS) -> StepJudge:
    """After steps with losses 1.9 and 2.1 in turn: mean 2, standard deviation 0.1."""
    for number in range(count):
        assert guard.judge(2.1 if number % 2 else 1.9, True) is TRAIN
    return guard


def test_steps_that_are_not_finite_are_skipped_then_the_run_goes_back_once_then_it_stops():
    guard = StepJudge(max_skipped_steps=3)
    bad = [guard.judge(nan, False) for _ in range(6)]
    assert bad == [SKIP, SKIP, ROLL_BACK, SKIP, SKIP, STOP]


def test_a_good_step_ends_a_row():
    guard = StepJudge(max_skipped_steps=2)
    assert [guard.judge(2.0, good) for good in (False, True, False, True)] == [SKIP, TRAIN, SKIP, TRAIN]
    assert guard.non_finite_in_a_row == 0


def test_with_one_step_allowed_the_run_goes_back_at_once():
    guard = StepJudge(max_skipped_steps=1)
    assert [guard.judge(nan, False), guard.judge(nan, False)] == [ROLL_BACK, STOP]


def test_the_usual_loss_is_mean_and_standard_deviation_of_the_window():
    usual = quiet(StepJudge()).usual()
    assert usual.mean == pytest.approx(2)
    assert usual.deviation == pytest.approx(0.1 * sqrt(WINDOW_STEPS / (WINDOW_STEPS - 1)))


@pytest.mark.parametrize(("loss", "decision"), [(2.59, TRAIN), (2.61, WARN), (1e30, WARN), (0.0, TRAIN)])
def test_six_standard_deviations_above_the_mean_is_a_spike(loss, decision):
    assert quiet(StepJudge()).judge(loss, True) is decision


def test_nothing_is_a_spike_before_there_is_something_to_compare_with():
    assert quiet(StepJudge(), MIN_STEPS - 1).judge(100, True) is TRAIN
    assert quiet(StepJudge(), MIN_STEPS).judge(100, True) is WARN


def test_losses_that_are_all_alike_make_no_spike_of_rounding():
    guard = StepJudge()
    for _ in range(WINDOW_STEPS):
        guard.judge(2.0, True)
    assert guard.judge(2.0000002, True) is TRAIN
    assert guard.judge(2.02, True) is WARN


def test_each_spike_is_reported_once():
    guard = quiet(StepJudge())
    assert [guard.judge(loss, True) for loss in (9, 9, 2, 9)] == [WARN, TRAIN, TRAIN, WARN]


def test_one_outlier_does_not_blind_the_guard():
    guard = quiet(StepJudge())
    assert guard.judge(1e9, True) is WARN
    quiet(guard, 20)
    assert guard.judge(3.5, True) is WARN


def test_a_level_that_stays_becomes_the_usual_one():
    guard = quiet(StepJudge())
    for _ in range(60):
        guard.judge(4.0, True)
    assert guard.usual().highest > 4.0


def test_spikes_are_skipped_where_that_was_asked_for_and_trained_on_when_they_stay():
    guard = quiet(StepJudge(max_skipped_steps=3, loss_spikes="skip"))
    before = guard.usual()
    assert [guard.judge(9.0, True) for _ in range(3)] == [SKIP, SKIP, SKIP]
    assert guard.usual() == before
    assert [guard.judge(9.0, True) for _ in range(2)] == [WARN, TRAIN]


def test_spikes_are_ignored_where_that_was_asked_for():
    assert quiet(StepJudge(loss_spikes="ignore")).judge(1e9, True) is TRAIN


@given(steps, st.integers(1, 4), st.sampled_from(["warn", "skip", "ignore"]), st.integers(0, 300))
def test_a_guard_that_is_saved_and_restored_goes_on_unchanged(losses, most, spikes, cut):
    whole = StepJudge(most, spikes)
    expected = [whole.judge(*step) for step in losses]
    first, second = StepJudge(most, spikes), StepJudge(most, spikes)
    found = [first.judge(*step) for step in losses[:cut]]
    second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    assert found + [second.judge(*step) for step in losses[cut:]] == expected


@given(steps, st.integers(1, 4), st.sampled_from(["warn", "skip", "ignore"]))
def test_nan_or_infinite_losses_are_never_trained_on_nor_kept(losses, most, spikes):
    guard, in_a_row, rollbacks = StepJudge(most, spikes), 0, 0
    for loss, finite in losses:
        decision = guard.judge(loss, finite)
        assert (decision in (TRAIN, WARN)) <= finite
        assert all(0 <= old < inf for old in guard.state_dict()["losses"])
        assert len(guard.state_dict()["losses"]) <= WINDOW_STEPS
        in_a_row = 0 if finite or decision is ROLL_BACK else in_a_row + 1
        assert (decision is STOP) == (not finite and rollbacks > 0 and in_a_row >= most)
        rollbacks += decision is ROLL_BACK
        assert rollbacks <= 1
    if guard.usual() is not None:
        assert guard.usual().highest >= guard.usual().mean * (1 + 0.9e-3 * SIGMAS)
