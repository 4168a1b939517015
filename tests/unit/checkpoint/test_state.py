"""Nested states come back as they were written, rank states are redistributed, and anything else is refused."""

import json
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oddsmith.checkpoint.state import read_state, write_state
from oddsmith.errors import CheckpointError

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
KEYS = st.text() | st.integers() | st.tuples(st.integers(), st.text())
TREES = st.recursive(
    SCALARS, lambda tree: st.lists(tree) | st.dictionaries(KEYS, tree) | st.lists(tree).map(tuple), max_leaves=20
)


@given(TREES)
def test_any_tree_comes_back(tmp_path_factory, tree):
    folder = tmp_path_factory.mktemp("state")
    write_state(folder, "x", tree)
    assert repr(read_state(folder, "x")) == repr(tree)  # repr: NaN is not equal to itself


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.int64, torch.bool])
def test_tensors_come_back_bit_for_bit(tmp_path, dtype):
    whole = torch.arange(12).reshape(3, 4).to(dtype)
    tree = {"whole": whole, "turned": whole.t(), "row": whole[1], "again": whole, "none": whole[:0], "one": whole[0, 0]}
    write_state(tmp_path, "x", tree)
    found = read_state(tmp_path, "x")
    for name, tensor in tree.items():
        assert found[name].dtype == dtype, name
        assert torch.equal(found[name], tensor), name
    assert found["whole"] is found["again"]


def test_states_of_random_generators_come_back(tmp_path):
    write_state(tmp_path, "x", {"python": random.getstate(), "numpy": np.random.get_state()})
    expected = random.random(), np.random.rand()
    found = read_state(tmp_path, "x")
    random.setstate(found["python"])
    np.random.set_state(found["numpy"])
    assert (random.random(), np.random.rand()) == expected


def test_an_optimizer_goes_on_as_if_it_had_not_stopped(tmp_path):
    def steps(parameter, optimizer, count):
        for _ in range(count):
            (parameter**3).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(5))
    optimizer = torch.optim.AdamW([{"params": [parameter], "weight_decay": 0.1}], lr=0.1, betas=(0.8, 0.9))
    steps(parameter, optimizer, 3)
    write_state(tmp_path, "optimizer", optimizer.state_dict())
    twin = torch.nn.Parameter(parameter.detach().clone())
    other = torch.optim.AdamW([{"params": [twin]}])
    other.load_state_dict(read_state(tmp_path, "optimizer"))
    steps(parameter, optimizer, 3)
    steps(twin, other, 3)
    assert torch.equal(parameter, twin)


def test_what_only_a_pickle_could_hold_is_named(tmp_path):
    with pytest.raises(TypeError, match=r"optimizer\['state'\]\[1\] is a Random, which cannot be written"):
        write_state(tmp_path, "optimizer", {"state": [1, random.Random()]})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text",
    [
        "", "{", '{"@": "tensor", "key": "7"}', '{"@": "tensor"}', '{"@": "strange"}', '{"@": "bytes", "value": "xy"}',
        '{"@": "map", "items": [[[], 1]]}', '{"@": "tuple", "items": 3}', "[" * 100_000,
    ],
)  # fmt: skip
def test_what_is_no_state_is_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(CheckpointError, match="x.json is damaged"):
        read_state(tmp_path, "x")


def test_a_missing_state_and_damaged_tensors_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="x.json is missing, so a run cannot go on from here"):
        read_state(tmp_path, "x")
    write_state(tmp_path, "x", [torch.zeros(3)])
    (tmp_path / "x.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(CheckpointError, match="x.json is damaged"):
        read_state(tmp_path, "x")


def test_the_json_is_strict(tmp_path):
    write_state(tmp_path, "x", {"worst": float("inf")})
    assert json.loads((tmp_path / "x.json").read_text()) == {"worst": {"@": "float", "value": "inf"}}
