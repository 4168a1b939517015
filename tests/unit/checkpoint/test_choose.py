"""The newest good checkpoint is taken, bad ones are kept aside, and only what is ours is ever removed."""

from __future__ import annotations

from pathlib import Path

import pytest

from oddsmith.checkpoint.choose import checkpoints, newest_verified, rotate, set_aside
from oddsmith.checkpoint.manifest import begin, commit, verify
from oddsmith.errors import CheckpointError
from tests.fault_runs import reverse_times


def make(run: Path, *steps: int) -> list[Path]:
    folders = [run / f"checkpoint-{step}" for step in steps]
    for step, folder in zip(steps, folders, strict=True):
        begin(folder)
        (folder / "trainer_state.json").write_text(f"{step}")
        commit(folder, step=step)
    return folders


def names(run: Path) -> set[str]:
    return {folder.name for folder in run.iterdir()}


def damage(folder: Path) -> None:
    (folder / "trainer_state.json").write_text("?")


def test_steps_are_numbers_and_times_do_not_count(tmp_path):
    make(tmp_path, 1000, 20, 3)
    assert newest_verified(tmp_path, print).name == "checkpoint-1000"


@pytest.mark.parametrize(
    "name", ["checkpoint-9-copy", "checkpoint-", "checkpoint-best", "checkpoint-09", "my-checkpoint-9"]
)
def test_other_names_are_somebody_elses(tmp_path, name):
    (good,) = make(tmp_path, 3)
    (tmp_path / name).mkdir()
    assert checkpoints(tmp_path) == [good]


def test_a_bad_one_is_passed_over_said_and_kept(tmp_path):
    good, bad = make(tmp_path, 10, 20)
    damage(bad)
    told: list[str] = []
    assert newest_verified(tmp_path, told.append) == good
    (line,) = told
    assert line.startswith(f"passed over {bad}: trainer_state.json has 1 bytes; 2 were written")
    assert line.endswith(f"it lies in {tmp_path}/_quarantine/checkpoint-20 now")
    assert (tmp_path / "_quarantine" / "checkpoint-20" / "trainer_state.json").read_text() == "?"


def test_one_with_a_wrong_name_is_passed_over(tmp_path):
    make(tmp_path, 10, 20)
    (tmp_path / "checkpoint-10").rename(tmp_path / "checkpoint-30")
    told: list[str] = []
    assert newest_verified(tmp_path, told.append).name == "checkpoint-20"
    assert "checkpoint-30: is of step 10; expected the step of its name" in told[0]


def test_with_none_good_it_stops_now_and_at_the_next_try(tmp_path):
    for folder in make(tmp_path, 1, 2):
        damage(folder)
    for _ in range(2):
        with pytest.raises(CheckpointError, match="none of its checkpoints is whole \\(2 in .*_quarantine\\)"):
            newest_verified(tmp_path, print)
    (tmp_path / "_quarantine" / "checkpoint-2" / "trainer_state.json").write_text("2")
    (tmp_path / "_quarantine" / "checkpoint-2").rename(tmp_path / "checkpoint-2")
    assert newest_verified(tmp_path, print).name == "checkpoint-2"


def test_a_run_that_never_finished_a_save_starts_over(tmp_path):
    begin(tmp_path / "checkpoint-5")
    told: list[str] = []
    assert newest_verified(tmp_path, told.append) is None
    assert "its save was never finished" in told[0]
    assert newest_verified(tmp_path, told.append) is None
    assert newest_verified(tmp_path / "nothing", told.append) is None


def test_what_is_put_aside_never_covers_another(tmp_path):
    places = []
    for _ in range(3):
        (folder,) = make(tmp_path, 7)
        places.append(set_aside(folder))
    assert [place.name for place in places] == ["checkpoint-7", "checkpoint-7.2", "checkpoint-7.3"]
    assert all(verify(place).step == 7 for place in places)


def test_the_oldest_go_first(tmp_path):
    make(tmp_path, 1, 2, 3, 4, 5)
    assert [folder.name for folder in rotate(tmp_path, 3)] == ["checkpoint-1", "checkpoint-2"]
    assert names(tmp_path) == {"checkpoint-3", "checkpoint-4", "checkpoint-5"}
    assert rotate(tmp_path, None) == rotate(tmp_path, 0) == []


def test_names_decide_and_never_times(tmp_path):
    """A clock that was set back, or a copy, gives the oldest the newest time."""
    make(tmp_path, 1, 2, 3, 4, 10)
    reverse_times(tmp_path)
    assert [folder.name for folder in rotate(tmp_path, 3)] == ["checkpoint-1", "checkpoint-2"]
    assert newest_verified(tmp_path, pytest.fail).name == "checkpoint-10"


def test_two_always_stay_and_the_best(tmp_path):
    best, *_ = make(tmp_path, 1, 2, 3, 4)
    rotate(tmp_path, 1, keep=best)
    assert names(tmp_path) == {"checkpoint-1", "checkpoint-3", "checkpoint-4"}


def test_a_damaged_one_does_not_count_as_one_of_the_two(tmp_path):
    *_, last = make(tmp_path, 1, 2, 3)
    (last / "trainer_state.json").unlink()
    assert rotate(tmp_path, 1) == []
    make(tmp_path, 4)
    assert [folder.name for folder in rotate(tmp_path, 1)] == ["checkpoint-1"]


def test_nothing_is_removed_that_is_not_ours(tmp_path):
    make(tmp_path, 2, 3, 4)
    (tmp_path / "checkpoint-0").mkdir()  # a folder of that name without a manifest
    elsewhere, *_ = make(tmp_path / "elsewhere", 1)
    (tmp_path / "checkpoint-1").symlink_to(elsewhere)
    assert [folder.name for folder in rotate(tmp_path, 2)] == ["checkpoint-2"]
    assert {"checkpoint-0", "checkpoint-1"} < names(tmp_path)
    assert verify(elsewhere).step == 1
