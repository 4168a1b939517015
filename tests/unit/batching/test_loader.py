"""What loaders hand over: micro-batches dealt to transformers' loop, and divided where memory runs out."""

from functools import partial

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from oddsmith.batching.collate import PaddedTensors, PairCollator
from oddsmith.batching.forest import forest_batch
from oddsmith.batching.loader import (
    Assignment,
    BatchMaker,
    LoadedRows,
    LoaderFactory,
    TrainingAssignments,
    assignments,
)
from oddsmith.batching.plan import Lengths, MicroBatch, StepShape, lengths_of, plan_step


def row(number: int, prompt: int = 2, chosen: int = 3, rejected: int = 4) -> dict:
    """A tokenized row; every pair has ids of its own, so that nothing is shared between pairs."""
    ids = np.arange(100 * number, 100 * number + prompt + chosen + rejected)
    return {
        "row": 10 * number,
        "chosen_input_ids": ids[: prompt + chosen],
        "rejected_input_ids": np.concatenate([ids[:prompt], ids[prompt + chosen :]]),
        "chosen_prompt_tokens": prompt,
        "rejected_prompt_tokens": prompt,
        "chosen_end": prompt + chosen,
        "rejected_end": prompt + rejected,
    }


def measure(one):
    return lengths_of(one, "sequence", shared_prompt_from=0)


def test_without_a_budget_each_item_is_one_micro_batch():
    shape = StepShape(1, 3, 2)
    plan = plan_step([4, 5, 6, 7, 8], [9, 8, 7, 6, 5], shape)
    for process in (0, 1):
        dealt = assignments(plan, process, 44, shape, items=3)
        assert [one.micro_batches for one in dealt] == [(one,) for one in plan.micro_batches[process]]
        assert {(one.num_pairs, one.num_nll_tokens) for one in dealt} == {(5, 44)}


@pytest.mark.parametrize("items", [1, 3])
def test_with_a_budget_the_last_item_holds_all(items):
    shape = StepShape(1, items, 1, max_tokens=10)
    plan = plan_step([4, 5, 6], [9, 8, 7], shape)
    dealt = assignments(plan, 0, 44, shape, items)
    assert [len(one.micro_batches) for one in dealt] == [0] * (items - 1) + [3]
    assert dealt[-1] == Assignment(plan.micro_batches[0], 3, 44)


@given(
    lengths=st.lists(st.integers(2, 500), min_size=1, max_size=40),
    shape=st.builds(
        StepShape, st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.none() | st.integers(1, 2000)
    ),
    drop_last=st.booleans(),
    epoch=st.integers(0, 2),
)
def test_an_epoch_has_as_many_items_as_it_says_and_every_pair_once(lengths, shape, drop_last, epoch):
    """As many on every process and with every budget: transformers counts its steps by them."""
    tokens = np.array(lengths)
    seen, counts = [], set()
    for process in range(shape.processes):
        epoch_of_process = TrainingAssignments(
            Lengths(tokens, tokens - 1), shape, process, seed=0, shuffle=True, drop_last=drop_last
        )
        epoch_of_process.epoch = epoch
        items = list(epoch_of_process)
        assert len(items) == len(epoch_of_process)
        counts.add(len(items))
        seen += [p for item in items for one in item.micro_batches if not one.is_filler for p in one.pairs]
    assert len(counts) == 1
    assert len(seen) == len(set(seen)) == (len(tokens) // shape.pairs * shape.pairs if drop_last else len(tokens))


def rows_of(numbers) -> Dataset:
    return Dataset.from_list([{**row(n, prompt=2 + n % 3, chosen=3 + 7 * n % 50), "chosen_gaps": []} for n in numbers])


def factory(rows, shape, process=0, **measured) -> LoaderFactory:
    padded = BatchMaker(PaddedTensors(PairCollator(0), False), one_each=True)
    return LoaderFactory(rows, shape, process, padded, partial(lengths_of, nll_on="sequence", **measured), {})


def grouped_steps(shape: StepShape, **measured) -> list[list[int]]:
    """The pairs of each step of an epoch that is grouped by length, over all processes."""
    steps: list[list[int]] = [[] for _ in range(20)]
    for process in range(shape.processes):
        made = factory(rows_of(range(160)), shape, process, **measured)
        _, plan = made.training(seed=3, shuffle=True, drop_last=False, group_by_length=True)
        for number, item in enumerate(plan):
            step = number // shape.accumulation
            steps[step] += [pair for which in item.micro_batches for pair in which.pairs]
    return [sorted(step) for step in steps]


@pytest.mark.parametrize("other", ((StepShape(1, 4, 2), {}), (StepShape(8, 1, 1), {"shared_prompt_from": 0})))
def test_steps_grouped_by_length_do_not_depend_on_processes_and_path(other):
    shape, measured = other
    assert grouped_steps(shape, **measured) == grouped_steps(StepShape(2, 1, 4))


def test_lengths_are_those_of_the_rows_with_gaps_and_without():
    rows = rows_of(range(5))
    shape = StepShape(1, 1, 1)
    for gaps in ([], [3, 5]):
        changed = rows.remove_columns("chosen_gaps").add_column("chosen_gaps", [[], gaps, [], gaps, []])
        _, plan = factory(changed.select([4, 1, 0]), shape).training(seed=0, shuffle=False, drop_last=False)
        expected = lengths_of(changed.select([4, 1, 0]).with_format("numpy")[:], "sequence")
        assert plan.lengths.tokens.tolist() == expected.tokens.tolist()
        assert plan.lengths.nll_tokens.tolist() == expected.nll_tokens.tolist()


def test_a_stream_is_not_grouped_and_one_line_says_so(caplog):
    stream = rows_of(range(4)).to_iterable_dataset()
    for process in (0, 1):
        made = factory(stream, StepShape(1, 1, 2), process)
        made.training(seed=0, shuffle=True, drop_last=False, group_by_length=True)
    assert [record.getMessage() for record in caplog.records] == [
        "train_sampling_strategy: group_by_length has no effect on a stream, taken as it comes"
    ]


def test_counts_of_a_micro_batch_and_of_its_step():
    which = (MicroBatch((6, 2)), MicroBatch((1,), is_filler=True))
    rows = LoadedRows([[row(6), row(2)], [row(1)]], Assignment(which, 7, 80))
    item = BatchMaker(partial(forest_batch, nll_on="sequence"))(rows)
    first, filler = item["micro_batches"]
    assert first["weight"].tolist() == [1, 1]
    assert filler["weight"].tolist() == [0]
    assert first["row"].tolist() == [60, 20]
    assert first["position"].tolist() == [6, 2]
    assert (first["num_pairs"].item(), filler["num_nll_tokens"].item()) == (7, 80)
    assert first["input_ids"].shape == (1, 18)


def test_a_padded_item_is_its_micro_batch():
    maker = BatchMaker(PaddedTensors(PairCollator(0)), one_each=True)
    item = maker(LoadedRows([[row(6), row(2)]], Assignment((MicroBatch((6, 2)),), 7, 80)))
    assert item["chosen_input_ids"].shape == (2, 5)
    assert item["num_pairs"] == 7


@given(tokens=st.lists(st.integers(1, 40), min_size=1, max_size=12), max_tokens=st.integers(1, 90))
def test_a_divided_item_is_what_the_smaller_budget_would_have_made(tokens, max_tokens):
    rows = {position: row(position, rejected=length) for position, length in enumerate(tokens, start=3)}
    maker = BatchMaker(partial(forest_batch, nll_on="sequence"))

    def planned(budget: int):
        shape = StepShape(len(rows), 1, 1, budget)
        plan = plan_step(list(rows), [int(measure(one).tokens) for one in rows.values()], shape)
        (assignment,) = assignments(plan, 0, 50, shape, items=1)
        return LoadedRows([[rows[p] for p in one.pairs] for one in assignment.micro_batches], assignment)

    divided = maker.divided(planned(100), max_tokens, measure)
    assert divided["loaded"].assignment.num_nll_tokens == 50
    micro_batches = divided["loaded"].assignment.micro_batches
    expected = planned(max_tokens).assignment.micro_batches
    assert sorted(p for one in micro_batches for p in one.pairs) == sorted(rows)
    assert len(micro_batches) == len(expected)
    for one, tensors in zip(micro_batches, divided["micro_batches"], strict=True):
        assert tensors["position"].tolist() == list(one.pairs)
        assert tensors["row"].tolist() == [rows[p]["row"] for p in one.pairs]
        assert len(one.pairs) == 1 or sum(int(measure(rows[p]).tokens) for p in one.pairs) <= max_tokens


def test_a_pair_that_fills_up_a_step_counts_nothing_when_its_item_is_divided():
    maker = BatchMaker(partial(forest_batch, nll_on="sequence"))

    def divided(*micro_batches: MicroBatch):
        rows = [[row(position) for position in one.pairs] for one in micro_batches]
        return maker.divided(LoadedRows(rows, Assignment(micro_batches, 2, 50)), 5, measure)["micro_batches"]

    filler = MicroBatch((3,), is_filler=True)
    assert [one["weight"].tolist() for one in divided(MicroBatch((3, 4)), filler)] == [[1.0], [1.0]]
    assert [one["weight"].tolist() for one in divided(filler)] == [[0.0]]
