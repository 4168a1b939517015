"""The newest intact checkpoint is chosen, damaged ones are kept, only ours are removed, failed saves are explained."""

import errno
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from oddsmith.checkpoint.manifest import begin, commit, verify
from oddsmith.checkpoint.store import checkpoints, clear_save_errors, give_back, newest_verified, rotate, set_aside
from oddsmith.errors import CheckpointError, ConfigError, SaveError
from tests.fault_runs import reverse_times
from tests.faults import file_size_limit


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


def test_folders_of_other_names_are_no_checkpoints(tmp_path):
    (good,) = make(tmp_path, 3)
    for name in ("checkpoint-9-copy", "checkpoint-", "checkpoint-best", "checkpoint-09", "my-checkpoint-9"):
        (tmp_path / name).mkdir()
        assert checkpoints(tmp_path) == [good]


def test_a_bad_one_is_skipped_reported_and_kept(tmp_path):
    good, bad = make(tmp_path, 10, 20)
    damage(bad)
    messages: list[str] = []
    assert newest_verified(tmp_path, messages.append) == good
    (line,) = messages
    assert line.startswith(f"skipped {bad}: trainer_state.json has 1 bytes; 2 were written")
    assert line.endswith(f"it was moved to {tmp_path}/_quarantine/checkpoint-20")
    assert (tmp_path / "_quarantine" / "checkpoint-20" / "trainer_state.json").read_text() == "?"


def test_one_with_a_wrong_name_is_skipped(tmp_path):
    make(tmp_path, 10, 20)
    (tmp_path / "checkpoint-10").rename(tmp_path / "checkpoint-30")
    messages: list[str] = []
    assert newest_verified(tmp_path, messages.append).name == "checkpoint-20"
    assert "checkpoint-30: is of step 10; expected the step of its name" in messages[0]


def test_with_none_good_it_stops_now_and_at_the_next_try(tmp_path):
    for folder in make(tmp_path, 1, 2):
        damage(folder)
    for _ in range(2):
        with pytest.raises(CheckpointError, match="none of its checkpoints is complete \\(2 in .*_quarantine\\)"):
            newest_verified(tmp_path, print)
    (tmp_path / "_quarantine" / "checkpoint-2" / "trainer_state.json").write_text("2")
    (tmp_path / "_quarantine" / "checkpoint-2").rename(tmp_path / "checkpoint-2")
    assert newest_verified(tmp_path, print).name == "checkpoint-2"


def test_a_run_that_never_finished_a_save_starts_over(tmp_path):
    begin(tmp_path / "checkpoint-5")
    messages: list[str] = []
    for folder in (tmp_path, tmp_path, tmp_path / "nothing"):
        assert newest_verified(folder, messages.append) is None
    assert "its save was never finished" in messages[0]


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


def test_a_save_that_fails_says_why_what_is_left_and_what_to_do(tmp_path):
    run = tmp_path / "run"
    _, damaged = make(run, 2, 4)
    damage(damaged)
    folder = run / "checkpoint-6"
    begin(folder)
    with pytest.raises(SaveError) as raised, file_size_limit(10_000), clear_save_errors(folder, lambda: 40_000):
        save_file({"x": torch.zeros(10_000)}, folder / "model.safetensors")
    assert str(raised.value) == (
        f"{folder}: not saved (file too large); checkpoint-2 is complete; raise the limit on the size of files"
        " (ulimit -f), then go on with --resume (in Python: train(resume_from_checkpoint=True))"
    )
    give_back(folder)
    give_back(damaged)
    assert sorted(place.name for place in run.iterdir()) == ["checkpoint-2", "checkpoint-4"]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (errno.ENOSPC, "not saved .no space left on device.: it takes 1,000 TB, and .* are free there; .*make room"),
        (errno.EDQUOT, "it takes 1,000 TB, and .* are free there; no checkpoint was saved before; make room"),
        (errno.EROFS, "not saved .read-only file system.; no checkpoint was saved before; make the folder writable"),
        (errno.EIO, "not saved .input/output error.; .*; check the disk .dmesg"),
        (errno.ESTALE, "not saved .stale file handle.; .*; the run folder was removed"),
    ],
)
def test_errors_of_the_system_are_explained(tmp_path, code, expected):
    with pytest.raises(SaveError, match=expected), clear_save_errors(tmp_path / "checkpoint-2", lambda: 10**15):
        raise OSError(code, "...")


def test_where_bytes_are_free_they_are_not_what_is_missing(tmp_path):
    with pytest.raises(SaveError) as raised, clear_save_errors(tmp_path / "checkpoint-2", lambda: 1):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "are free there, though not for this user or not for one more file (quota, df -i)" in str(raised.value)


@pytest.mark.parametrize("error", [RuntimeError, ConnectionError, ConfigError, TypeError])
def test_errors_that_are_not_the_disk_s_pass(tmp_path, error):
    with pytest.raises(error), clear_save_errors(tmp_path / "checkpoint-2", lambda: 1):
        raise error("x")
