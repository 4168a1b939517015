"""What processes carried is dealt out among another number of them, or refused."""

from __future__ import annotations

import pytest
import torch

from oddsmith.checkpoint.carried import read_process, write_process
from oddsmith.checkpoint.manifest import Manifest
from oddsmith.checkpoint.state import write_state
from oddsmith.errors import CheckpointError


def test_sums_of_two_processes_are_dealt_out_among_three(tmp_path):
    for rank, (total, loss) in enumerate([([2.0, 4.0], 1.0), ([4.0, 8.0], 3.0)]):
        parts = {"meter": {"total": torch.tensor(total)}, "loss": {"unlogged": torch.tensor(loss)}}
        write_process(tmp_path, rank, 2, parts)
    carried = [read_process(tmp_path, Manifest(step=1, files={}, world_size=2), rank, 3) for rank in range(3)]
    assert sum(each["parts"]["meter"]["total"] for each in carried).tolist() == [6.0, 12.0]
    assert [each["parts"]["loss"]["unlogged"].item() for each in carried] == [2.0, 2.0, 2.0]
    assert [each["random"] is None for each in carried] == [False, False, True]


@pytest.mark.parametrize("state", [None, [], {}, {"parts": None}, {"parts": {"meter": 1}}, {"parts": ["meter"]}])
def test_something_else_than_processes_carry_is_refused(tmp_path, state):
    write_state(tmp_path, "process-0", state)
    with pytest.raises(CheckpointError, match="hold something else than processes carry"):
        read_process(tmp_path, Manifest(step=1, files={}, world_size=1), 0, 2)
