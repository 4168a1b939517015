"""Items in one piece: out of workers, into pinned memory, onto a device; and workers that fail say so."""

import gc
import multiprocessing
import os
import pickle
import resource
import signal
from collections import namedtuple
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import get_worker_info
from torch.utils.data._utils.pin_memory import pin_memory
from transformers import BatchEncoding

from oddsmith.batching.collate import PaddedTensors, PairCollator
from oddsmith.batching.forest import ForestLayout, forest_batch
from oddsmith.batching.item import LoaderItem, Parcel, on_device
from oddsmith.batching.loader import (
    Assignment,
    BatchMaker,
    LoadedRows,
    LoaderFactory,
    clear_worker_errors,
)
from oddsmith.batching.plan import MicroBatch, StepShape, lengths_of
from oddsmith.errors import WorkerError
from tests.unit.batching.test_loader import row

Sides = namedtuple("Sides", "chosen rejected")
DTYPES = (torch.int64, torch.int32, torch.uint8, torch.bool, torch.float32, torch.float64, torch.bfloat16)
tensors = st.builds(
    lambda shape, dtype, is_turned: (
        (torch.rand(shape) * 9).to(dtype).permute(tuple(range(len(shape)))[:: -1 if is_turned else 1])
    ),
    st.lists(st.integers(0, 4), max_size=2),
    st.sampled_from(DTYPES),
    st.booleans(),
)
leaves = tensors | st.text() | st.none() | st.integers() | st.just(torch.eye(2).to_sparse())
nested = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        | st.tuples(inner, inner)
        | st.builds(Sides, inner, inner)
        | st.dictionaries(st.text(max_size=3), inner, max_size=2).map(BatchEncoding)
    ),
    max_leaves=8,
)


def forest_item(pairs: int = 5) -> LoaderItem:
    which = tuple(MicroBatch((number,)) for number in range(pairs))
    rows = LoadedRows([[row(number)] for number in range(pairs)], Assignment(which, pairs, 80))
    return BatchMaker(partial(forest_batch, nll_on="sequence"))(rows)


def assert_same(one, other):
    assert type(one) is type(other)
    if isinstance(one, Tensor):
        assert (one.dtype, one.shape, one.layout) == (other.dtype, other.shape, other.layout)
        assert torch.equal(one.to_dense(), other.to_dense())
    elif isinstance(one, ForestLayout):
        assert_same(vars(one), vars(other))
    elif isinstance(one, dict | BatchEncoding):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for some, others in zip(one, other, strict=True):
            assert_same(some, others)
    elif not isinstance(one, LoadedRows):
        assert one == other


def strided_tensors(data) -> list[Tensor]:
    found = []
    if isinstance(data, Tensor) and data.layout == torch.strided:
        found.append(data)
    elif isinstance(data, ForestLayout):
        found += strided_tensors(vars(data))
    elif isinstance(data, dict | BatchEncoding):
        found += [tensor for value in data.values() for tensor in strided_tensors(value)]
    elif isinstance(data, list | tuple):
        found += [tensor for value in data for tensor in strided_tensors(value)]
    return found


class Copies(TorchDispatchMode):
    """Counts the copies to another device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._to_copy.default
        return func(*args, **(kwargs or {}))


@given(nested)
def test_any_structure_comes_out_of_a_worker_as_it_was(data):
    item = LoaderItem(batch=data)
    sent = bytes(multiprocessing.reduction.ForkingPickler.dumps(Parcel(item)))  # as the queue of a worker does
    received = pickle.loads(sent)
    assert_same(received, item)
    assert len({tensor.untyped_storage().data_ptr() for tensor in strided_tensors(received) if tensor.numel()}) <= 1


def test_of_a_forest_the_depths_travel_once_and_no_rows_at_all():
    item = forest_item()
    received = pickle.loads(pickle.dumps(Parcel(item)))
    assert_same(received["micro_batches"], item["micro_batches"])
    first = received["micro_batches"][0]
    assert first["position_ids"].data_ptr() == first["forest"].depth_T.data_ptr()
    first["row"][0] = 7  # it can be written to


@given(nested)
def test_a_batch_is_copied_to_a_device_at_once(data):
    batch = {"batch": data, "count": torch.tensor(2.0)}
    with Copies() as copies:
        moved = on_device(batch, torch.device("meta"), pin=False)
    assert copies.count == 1
    assert {tensor.device.type for tensor in strided_tensors(moved)} == {"meta"}
    shapes = [(tensor.shape, tensor.dtype) for tensor in strided_tensors(batch)]
    assert [(tensor.shape, tensor.dtype) for tensor in strided_tensors(moved)] == shapes
    with Copies() as copies:
        assert on_device(moved, torch.device("meta"), pin=False) is moved
    assert copies.count == 0


def test_a_micro_batch_of_an_item_in_one_buffer_is_copied_without_the_others():
    item = pickle.loads(pickle.dumps(Parcel(forest_item())))
    sizes = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten._to_copy.default:
                sizes.append(args[0].numel())
            assert func is not torch.ops.aten.copy_.default  # nothing is packed again
            return func(*args, **(kwargs or {}))

    with Sizes():
        for micro_batch in item["micro_batches"]:
            on_device(micro_batch, torch.device("meta"), pin=False)
    whole = item["micro_batches"][0]["row"].untyped_storage().nbytes()
    assert len(sizes) == 5
    assert sum(sizes) == whole


def test_on_a_cpu_a_batch_stays_as_it_is():
    item = forest_item()
    assert on_device(item, torch.device("cpu"), pin=True) is item


def test_a_loader_pins_an_item_in_one_piece(monkeypatch):
    pinned = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor.clone())
    item = forest_item()
    result = pin_memory(item)  # what a data loader calls
    assert len(pinned) == 1
    assert type(result) is LoaderItem
    assert_same(result["micro_batches"], item["micro_batches"])
    assert result["loaded"] is item["loaded"]
    assert len({tensor.untyped_storage().data_ptr() for tensor in strided_tensors(result)}) == 1
    assert pin_memory(LoaderItem(texts=["a"])) == {"texts": ["a"]}


def test_what_a_worker_sent_is_pinned_as_it_lies(monkeypatch):
    pinned = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor.clone())
    received = pickle.loads(pickle.dumps(Parcel(forest_item())))
    result = pin_memory(received)
    assert [tensor.data_ptr() for tensor in pinned] == [received["micro_batches"][0]["input_ids"].data_ptr()]
    assert_same(result["micro_batches"], received["micro_batches"])


# ---- With real workers


class Rows(list):
    """Tokenized rows as a map-style dataset of ``datasets``."""

    column_names = ("chosen_end", "rejected_end", "chosen_prompt_tokens")

    def select_columns(self, names):
        return self

    def with_format(self, name):
        return self

    def __getitem__(self, place):
        if isinstance(place, slice):
            return {name: np.array([one[name] for one in self]) for name in self.column_names}
        return super().__getitem__(place)


class LocalCollator(PairCollator):
    """A collator of the user's: beside tensors it returns texts, and a sparse tensor."""

    def __call__(self, features):
        batch = super().__call__(features)
        return batch | {"texts": ["a", None], "sparse": torch.eye(3).to_sparse(), "extra": {"x": [torch.ones(2)]}}


def loader_of(maker: BatchMaker, pairs: int = 256, budget: int | None = 3, **options):
    measure = partial(lengths_of, nll_on="sequence", shared_prompt_from=0)
    shape = StepShape(1, 64, 1, budget)
    options = {"num_workers": 2, "timeout": 60, **options}
    factory = LoaderFactory(Rows(row(number) for number in range(pairs)), shape, 0, maker, measure, options)
    return factory.training(seed=0, shuffle=True, drop_last=False)[0]


@pytest.fixture
def few_descriptors():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


PACKED = BatchMaker(partial(forest_batch, nll_on="sequence"))
PADDED = BatchMaker(PaddedTensors(LocalCollator(0)), one_each=True)


@pytest.mark.parametrize(("maker", "budget"), [(PACKED, 3), (PADDED, None)], ids=["packed", "padded"])
def test_an_item_of_64_micro_batches_needs_few_file_descriptors(maker, budget, few_descriptors):
    ahead = list(loader_of(maker, budget=budget))  # all of an epoch at once
    here = list(loader_of(maker, budget=budget, num_workers=0, timeout=0))
    assert len(ahead) == 256
    assert sum(len(item.get("micro_batches", [item])) for item in ahead) == 256
    for one, other in zip(ahead, here, strict=True):
        assert_same(one, other)


def test_rows_that_a_worker_loaded_can_be_loaded_again():
    loader = loader_of(PACKED, pairs=64)
    plan = loader.batch_sampler
    item = list(loader)[-1]
    assert not item["loaded"].rows
    again = plan.with_rows(item["loaded"])
    positions = [which.pairs for which in item["loaded"].assignment.micro_batches]
    assert [[one["row"] for one in rows] for rows in again.rows] == [[10 * p for p in pairs] for pairs in positions]


class Failing(PairCollator):
    """Fails in a worker, in one of the ways there are."""

    def __init__(self, how: str):
        super().__init__(0)
        self.how = how

    def __call__(self, features):
        assert get_worker_info() is not None

        class OfThisFunction(Exception):
            pass

        if self.how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "exit":
            os._exit(3)
        if self.how == "memory":
            raise MemoryError("no room for this batch")
        if self.how == "local":
            raise OfThisFunction("a class that the main process lacks")
        if self.how == "lambda":
            return super().__call__(features) | {"function": lambda: 0}
        raise KeyError("chosen_colour")


@pytest.fixture
def workers_are_ended():
    """The traceback of an error holds the loader, and so its workers."""
    before = multiprocessing.active_children()  # of other tests, which may go on
    yield
    gc.collect()
    for worker in multiprocessing.active_children():
        if worker not in before:
            worker.join(10)


@pytest.mark.parametrize(
    ("how", "error", "says"),
    [
        ("killed", WorkerError, r"DataLoader worker \(pid.*; a system kills processes where memory runs out: lower"),
        ("exit", WorkerError, r"DataLoader worker \(pid.* exited unexpectedly.*; a system"),
        ("memory", MemoryError, "no room for this batch"),
        ("local", RuntimeError, "OfThisFunction: a class that the main process lacks"),
        ("lambda", (AttributeError, pickle.PicklingError), "[Pp]ickle.*lambda"),
        ("key", KeyError, "chosen_colour"),
    ],
)
@pytest.mark.usefixtures("workers_are_ended")
def test_a_worker_that_fails_ends_the_run_with_its_reason(how, error, says):
    maker = BatchMaker(PaddedTensors(Failing(how)), one_each=True)
    with pytest.raises(error, match=says), clear_worker_errors():
        list(loader_of(maker, pairs=4, budget=None, num_workers=1, timeout=5))
