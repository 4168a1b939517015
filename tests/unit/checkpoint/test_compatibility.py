"""Differences that make it another run are reported, others are not."""

from dataclasses import replace
from pathlib import Path

import pytest

from oddsmith.checkpoint.compatibility import changes, require_length, require_possible, require_unchanged
from oddsmith.checkpoint.manifest import Manifest
from oddsmith.errors import CheckpointError

FOLDER = Path("run/checkpoint-8")
SAVED = Manifest(
    step=8,
    files={},
    world_size=2,
    pairs_per_step=8,
    settings={"beta": 0.1, "learning_rate": 8e-6, "max_prompt_length": None},
    data={"train": {"sha256": "a", "pairs": 1000}, "eval": {"sha256": "b", "pairs": 10}},
    base={"files": {"model.safetensors": {"bytes": 3, "sha256": "c"}}, "commit": None},
)


def test_the_same_run_has_no_changes():
    assert changes(SAVED, SAVED) == []
    require_unchanged(FOLDER, SAVED, SAVED)
    require_possible(FOLDER, SAVED, SAVED)


def test_every_change_is_shown_with_both_values():
    now = replace(
        SAVED,
        settings={"beta": 0.2, "learning_rate": 8e-6, "max_prompt_length": 128},
        data={"train": {"sha256": "d", "pairs": 1001}},
        base={"files": {"model.safetensors": {"bytes": 3, "sha256": "e"}}, "commit": "123"},
    )
    assert changes(SAVED, now) == [
        "beta: 0.1 -> 0.2",
        "max_prompt_length: none -> 128",
        "train pairs: others than before (1,000 pairs -> 1,001 pairs)",
        "base model: other weights than before (commit None -> 123)",
    ]
    with pytest.raises(CheckpointError, match=r"with other settings or data: beta: 0.1 -> 0.2; .*allow_changed=True"):
        require_unchanged(FOLDER, SAVED, now)


def test_settings_that_may_change_are_no_changes():
    now = replace(SAVED, settings={**SAVED.settings, "beta": 0.2})
    require_unchanged(FOLDER, SAVED, now, free=("beta",))


def test_a_run_ends_after_what_is_done_of_it():
    require_length(FOLDER, 8, 8, "max_steps 8")
    with pytest.raises(CheckpointError, match="is of step 8, and with max_steps 7 this run ends after step 7; make it"):
        require_length(FOLDER, 8, 7, "max_steps 7")


def test_a_base_in_other_files_is_the_same_and_one_that_is_not_known_is_not_judged():
    renamed = {"files": {"weights.safetensors": {"bytes": 3, "sha256": "c"}}, "commit": None}
    assert changes(SAVED, replace(SAVED, base=renamed)) == []
    assert changes(SAVED, replace(SAVED, base={"files": {}, "commit": None})) == []


def test_what_a_version_did_not_know_is_not_a_change():
    assert changes(SAVED, replace(SAVED, settings={**SAVED.settings, "new_setting": 1})) == []


def test_processes_may_change_where_the_steps_stay_the_same():
    require_possible(FOLDER, SAVED, replace(SAVED, world_size=4))
    message = r"its steps had 8 pairs \(2 processes\), these would have 4 \(1 process\)"
    with pytest.raises(CheckpointError, match=message):
        require_possible(FOLDER, SAVED, replace(SAVED, world_size=1, pairs_per_step=4))


def test_sharded_files_are_read_by_any_number_of_processes_of_their_kind():
    sharded = replace(SAVED, sharded_by="FSDP")
    require_possible(FOLDER, sharded, replace(sharded, world_size=4))
    for saved, now in (
        (sharded, SAVED),
        (SAVED, sharded),
        (sharded, replace(sharded, sharded_by="DeepSpeed")),
    ):
        with pytest.raises(CheckpointError, match=r"was saved by 2 processes with.*, and cannot be read with"):
            require_possible(FOLDER, saved, now)
