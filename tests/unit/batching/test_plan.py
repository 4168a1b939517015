"""StepPlan: a pure function that loses no pair, balances tokens and can jump."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oddsmith.batching.plan import (
    StepShape,
    epoch_order,
    grouped_order,
    lengths_of,
    num_steps,
    plan_epoch_step,
    plan_evaluation,
    plan_step,
    response_tokens,
    slowest_share,
)

shapes = st.builds(
    StepShape, micro_batch_size=st.integers(1, 5), accumulation=st.integers(1, 4), processes=st.integers(1, 4)
)
budgets = st.builds(
    StepShape,
    micro_batch_size=st.just(1),
    accumulation=st.just(1),
    processes=st.integers(1, 4),
    max_tokens=st.integers(1, 5000),
)
token_lists = st.lists(st.integers(2, 2000), min_size=1, max_size=90)


def real_pairs(plan):
    return [p for process in plan.micro_batches for batch in process if not batch.is_filler for p in batch.pairs]


@settings(max_examples=200, deadline=None)
@given(tokens=token_lists, shape=shapes, seed=st.integers(0, 5), epoch=st.integers(0, 3))
def test_every_pair_once_an_epoch_and_equal_counts_for_all_ranks(tokens, shape, seed, epoch):
    tokens = np.array(tokens)
    order = epoch_order(len(tokens), seed=seed, epoch=epoch)
    seen = []
    for step in range(num_steps(len(tokens), shape)):
        plan = plan_epoch_step(order, tokens, step, shape)
        counts = {len(process) for process in plan.micro_batches}
        assert len(counts) == 1
        assert counts.pop() <= shape.accumulation
        assert len(plan.micro_batches) == shape.processes
        assert sorted(real_pairs(plan)) == sorted(plan.pairs)
        assert all(len(b.pairs) <= shape.micro_batch_size for process in plan.micro_batches for b in process)
        seen += real_pairs(plan)
    assert sorted(seen) == list(range(len(tokens)))


@settings(max_examples=300, deadline=None)
@given(data=st.data(), shape=shapes)
def test_no_micro_batch_exceeds_the_mean_load_by_more_than_the_longest_pair(data, shape):
    tokens = data.draw(st.lists(st.integers(2, 2000), min_size=shape.pairs, max_size=shape.pairs))
    plan = plan_step(range(len(tokens)), tokens, shape)
    loads = [sum(tokens[p] for p in batch.pairs) for process in plan.micro_batches for batch in process]
    assert max(loads) <= sum(loads) / len(loads) + max(tokens)


def test_loads_are_nearly_equal_on_ordinary_lengths():
    rng = np.random.default_rng(0)
    shape = StepShape(micro_batch_size=8, accumulation=2, processes=2)
    for _ in range(20):
        tokens = rng.lognormal(5, 0.6, shape.pairs).astype(int) + 2
        plan = plan_step(range(len(tokens)), tokens.tolist(), shape)
        loads = [sum(tokens[p] for p in batch.pairs) for process in plan.micro_batches for batch in process]
        assert max(loads) <= 1.35 * np.mean(loads)


@settings(max_examples=100, deadline=None)
@given(tokens=token_lists, shape=shapes, data=st.data())
def test_a_jump_to_a_step_equals_walking_there(tokens, shape, data):
    tokens = np.array(tokens)
    order = epoch_order(len(tokens), seed=1, epoch=2)
    walked = [plan_epoch_step(order, tokens, k, shape) for k in range(num_steps(len(tokens), shape))]
    k = data.draw(st.integers(0, len(walked) - 1))
    assert plan_epoch_step(epoch_order(len(tokens), seed=1, epoch=2), tokens, k, shape) == walked[k]


def test_order_depends_on_seed_and_epoch_alone():
    orders = {tuple(epoch_order(50, seed=s, epoch=e)) for s in (0, 1) for e in (0, 1)}
    assert len(orders) == 4
    assert tuple(epoch_order(50, seed=0, epoch=1)) in orders
    assert epoch_order(5, seed=3, epoch=9, shuffle=False).tolist() == [0, 1, 2, 3, 4]


def test_a_short_last_step_keeps_idle_ranks_busy_with_a_filler():
    shape = StepShape(micro_batch_size=2, accumulation=2, processes=3)
    plan = plan_step([7], [40], shape)
    assert [len(process) for process in plan.micro_batches] == [1, 1, 1]
    assert real_pairs(plan) == [7]
    assert sum(batch.is_filler for process in plan.micro_batches for batch in process) == 2


def test_a_stream_gets_the_same_number_of_micro_batches_every_step():
    shape = StepShape(micro_batch_size=2, accumulation=4, processes=2)
    plan = plan_step([0, 1, 2], [5, 6, 7], shape, fixed=True)
    assert [len(process) for process in plan.micro_batches] == [4, 4]
    assert sorted(real_pairs(plan)) == [0, 1, 2]


@pytest.mark.parametrize(
    ("pairs", "drop_last", "expected"), [(16, False, 2), (17, False, 3), (17, True, 2), (3, True, 0)]
)
def test_number_of_steps(pairs, drop_last, expected):
    assert num_steps(pairs, StepShape(2, 2, 2), drop_last=drop_last) == expected


def test_evaluation_visits_each_pair_once_longest_first():
    tokens = np.array([5, 50, 20, 7, 33])
    plans = plan_evaluation(tokens, StepShape(2, 1, 2))
    assert sorted(p for plan in plans for p in real_pairs(plan)) == [0, 1, 2, 3, 4]
    assert 1 in plans[0].pairs


# ---- Grouped by length


def lengths_like_real_pairs(pairs: int) -> np.ndarray:
    """Lengths with the median and the spread of those of HH, 233 tokens and 0.58 (of logarithms)."""
    return np.random.default_rng(1).lognormal(5.45, 0.58, pairs).astype(int).clip(2, 1100)


def epoch_plans(order, tokens, shape):
    return [plan_epoch_step(order, tokens, step, shape) for step in range(num_steps(len(tokens), shape))]


@settings(max_examples=150, deadline=None)
@given(tokens=token_lists, pairs=st.integers(1, 20), seed=st.integers(0, 3), epoch=st.integers(0, 3))
def test_grouping_loses_no_pair_and_leaves_a_short_step_to_chance(tokens, pairs, seed, epoch):
    order = epoch_order(len(tokens), seed=seed, epoch=epoch)
    found = grouped_order(order, np.array(tokens), pairs, seed=seed, epoch=epoch)
    rest = len(tokens) % pairs
    assert sorted(found) == list(range(len(tokens)))
    assert found[len(tokens) - rest :].tolist() == order[len(tokens) - rest :].tolist()
    assert found.tolist() == grouped_order(order, np.array(tokens), pairs, seed=seed, epoch=epoch).tolist()


def test_steps_of_a_window_are_neighbours_in_length_in_a_random_order():
    tokens = lengths_like_real_pairs(400)
    order = epoch_order(400, seed=0, epoch=0)
    steps = [sorted(tokens[step]) for step in grouped_order(order, tokens, 8, seed=0, epoch=0).reshape(-1, 8)]
    in_order = sorted(steps, key=sum)
    assert [length for step in in_order for length in step] == sorted(tokens)
    assert steps not in (in_order, in_order[::-1])
    assert len({tuple(grouped_order(order, tokens, 8, seed=s, epoch=e)) for s in (0, 1) for e in (0, 1)}) == 4


@pytest.mark.parametrize(("processes", "per_process", "without"), [(8, 2, 1.2), (64, 2, 1.4), (64, 1, 2.0)])
def test_processes_wait_less_for_the_slowest_one(processes, per_process, without):
    tokens = lengths_like_real_pairs(6400)
    order = epoch_order(len(tokens), seed=0, epoch=0)
    shape = StepShape(per_process, 1, processes)
    grouped = grouped_order(order, tokens, shape.pairs, seed=0, epoch=0)
    assert slowest_share(epoch_plans(order, tokens, shape), tokens) > without
    assert slowest_share(epoch_plans(grouped, tokens, shape), tokens) < 1.15


def test_the_slowest_share_is_that_of_sums_over_steps():
    tokens = np.array([30, 10, 10, 10])
    plans = epoch_plans(np.arange(4), tokens, StepShape(1, 1, 2))
    assert slowest_share(plans, tokens) == (30 + 10) / (20 + 10)


# ---- With a token budget


def loads(plan, tokens):
    return [[tokens[p] for p in b.pairs] for process in plan.micro_batches for b in process if not b.is_filler]


@settings(max_examples=300)
@given(tokens=token_lists, shape=budgets)
def test_within_a_budget_every_pair_stands_once_and_processes_have_equally_many_micro_batches(tokens, shape):
    plan = plan_step(range(len(tokens)), tokens, shape)
    assert sorted(real_pairs(plan)) == list(range(len(tokens)))
    assert all(len(load) == 1 or sum(load) <= shape.max_tokens for load in loads(plan, tokens))
    assert len(plan.micro_batches) == shape.processes
    assert len({len(process) for process in plan.micro_batches}) == 1
    assert plan == plan_step(range(len(tokens)), tokens, shape)


@settings(max_examples=300)
@given(tokens=token_lists, shape=budgets)
def test_a_budget_makes_few_micro_batches(tokens, shape):
    """Never more than pairs, nor than twice what their tokens fill.

    Where a number of micro-batches does not do, one of them got a pair too many, so it was more than half full before;
    all others were fuller still, and with them the tokens fill half of that number.
    """
    each = len(plan_step(range(len(tokens)), tokens, shape).micro_batches[0])
    filled = sum(min(length, shape.max_tokens) for length in tokens) / (shape.processes * shape.max_tokens)
    assert filled <= each <= max(1, np.ceil(2 * filled))
    assert each <= np.ceil(len(tokens) / shape.processes)


def test_of_ordinary_lengths_it_makes_hardly_more_than_their_tokens_fill():
    rng = np.random.default_rng(0)
    for _ in range(50):
        tokens = (rng.lognormal(5.5, 0.6, 64).astype(int) + 2).tolist()
        plan = plan_step(range(64), tokens, StepShape(1, 64, 1, max_tokens=2048))
        assert len(plan.micro_batches[0]) <= np.ceil(sum(tokens) / 2048) + 1


def test_pairs_beyond_the_budget_stand_alone_and_bring_no_fillers():
    plan = plan_step([7, 8, 9], [5000, 20, 30], StepShape(3, 1, 1, max_tokens=60))
    assert [batch.pairs for batch in plan.micro_batches[0]] == [(7,), (9, 8)]
    assert not any(batch.is_filler for batch in plan.micro_batches[0])


def test_one_pair_for_three_processes_keeps_the_others_busy():
    plan = plan_step([7], [40], StepShape(2, 2, 3, max_tokens=100))
    assert [len(process) for process in plan.micro_batches] == [1, 1, 1]
    assert sum(batch.is_filler for process in plan.micro_batches for batch in process) == 2


def test_gaps_hold_no_targets():
    """Chosen 12 = 4 prompt + 3 + gap of 2 + 3; rejected 9 = 4 + 1 + 1 + gaps of 1 and 2."""
    columns = {
        "chosen_end": [12, 12], "rejected_end": [9, 9],
        "chosen_prompt_tokens": [4, 4], "rejected_prompt_tokens": [4, 4],
        "chosen_gaps": [[7, 9], []], "rejected_gaps": [[5, 6, 7, 9], []],
    }  # fmt: skip
    assert lengths_of(columns, "sequence").nll_tokens.tolist() == [9, 11]
    assert lengths_of(columns, "response").nll_tokens.tolist() == [6, 8]
    assert lengths_of(columns, "response").tokens.tolist() == [21, 21]
    assert response_tokens(columns, "rejected").tolist() == [2, 5]
    row = {name: values[0] for name, values in columns.items()}
    assert (int(lengths_of(row, "response").nll_tokens), int(response_tokens(row, "rejected"))) == (6, 2)


@pytest.mark.parametrize(
    ("nll_on", "more", "expected"),
    [
        ("sequence", {}, ([25, 6], [9, 3])),
        ("response", {}, ([25, 6], [3, 3])),
        ("sequence", {"shared_prompt_from": 0}, ([18, 6], [9, 3])),
        ("sequence", {"is_encoder_decoder": True}, ([25, 6], [10, 4])),
    ],
)
def test_lengths_by_hand(nll_on, more, expected):
    """Two pairs: chosen 10 = 7 prompt + 3, rejected 15 = 7 prompt + 8; and without a prompt 4 and 2."""
    columns = {"chosen_end": [10, 4], "rejected_end": [15, 2], "chosen_prompt_tokens": [7, 0]}
    lengths = lengths_of(columns, nll_on, **more)
    assert (lengths.tokens.tolist(), lengths.nll_tokens.tolist()) == expected
    assert lengths.nll_tokens_of([1]) == expected[1][1]
