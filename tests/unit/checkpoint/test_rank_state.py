"""The states of ranks are redistributed to another number of ranks, migrated, or refused with a reason."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from oddsmith.checkpoint.manifest import Manifest
from oddsmith.checkpoint.rank_state import load_part, read_rank_state, write_rank_state
from oddsmith.checkpoint.state import write_state
from oddsmith.errors import CheckpointError


@dataclass
class Part:
    """A part that sums over the pairs of its rank."""

    total: torch.Tensor = field(default_factory=lambda: torch.zeros(2))
    state_version: int = 1

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total}

    def load_state_dict(self, state, version) -> None:
        self.total = state["total"]

    @staticmethod
    def redistribute(states, world_size) -> dict[str, Any]:
        return {"total": torch.stack([state["total"] for state in states]).sum(dim=0) / world_size}


def manifest(world_size: int) -> Manifest:
    return Manifest(step=1, files={}, world_size=world_size)


def test_sums_of_two_ranks_are_redistributed_to_three(tmp_path):
    for rank, total in enumerate([[2.0, 4.0], [4.0, 8.0]]):
        write_rank_state(tmp_path, rank, 2, {"sums": Part(torch.tensor(total))})
    states = [read_rank_state(tmp_path, manifest(2), rank, 3, {"sums": Part()}) for rank in range(3)]
    assert sum(state.parts["sums"][1]["total"] for state in states).tolist() == [6.0, 12.0]
    assert [state.random is None for state in states] == [False, False, True]


def test_a_part_continues_and_one_that_the_checkpoint_does_not_know_starts_anew(tmp_path):
    write_rank_state(tmp_path, 0, 1, {"sums": Part(torch.ones(2)), "gone": Part()})
    state = read_rank_state(tmp_path, manifest(1), 0, 1, {"sums": Part(), "new": Part()})
    old, new = Part(), Part()
    load_part(tmp_path, state, "sums", old)
    load_part(tmp_path, state, "new", new)
    assert (old.total.tolist(), new.total.tolist(), "gone" in state.parts) == ([1.0, 1.0], [0.0, 0.0], False)


def test_a_state_without_versions_is_migrated(tmp_path):
    """As written before states had versions."""
    write_state(tmp_path, "process-0", {"random": {}, "parts": {"sums": {"total": torch.ones(2)}}})
    state = read_rank_state(tmp_path, manifest(1), 0, 1, {"sums": Part()})
    assert state.parts["sums"][0] == 1
    assert state.parts["sums"][1]["total"].tolist() == [1.0, 1.0]


def test_a_state_of_a_newer_version_is_refused(tmp_path):
    write_rank_state(tmp_path, 0, 1, {"sums": Part(state_version=2)})
    with pytest.raises(CheckpointError, match=r"newer version of oddsmith \(sums\); install"):
        read_rank_state(tmp_path, manifest(1), 0, 1, {"sums": Part()})


@pytest.mark.parametrize("state", [None, [], {}, {"parts": None}, {"parts": {"sums": 1}}, {"parts": ["sums"]}])
def test_something_else_than_rank_states_is_refused(tmp_path, state):
    write_state(tmp_path, "process-0", state)
    with pytest.raises(CheckpointError, match="hold something else than this version writes"):
        read_rank_state(tmp_path, manifest(1), 0, 2, {"sums": Part()})


def test_a_state_of_another_shape_is_refused_with_the_name_of_its_part(tmp_path):
    write_state(tmp_path, "process-0", {"random": {}, "parts": {"sums": {"other": 1}}})
    state = read_rank_state(tmp_path, manifest(1), 0, 1, {"sums": Part()})
    with pytest.raises(CheckpointError, match=r"\(sums\) hold something else .* \(KeyError 'total'\)"):
        load_part(tmp_path, state, "sums", Part())
