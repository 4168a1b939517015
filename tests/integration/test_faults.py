"""Faults of the machine: the last good checkpoint survives, one line says why, and the run resumes from it.

Every fault is the real one, in a process of its own: a small disk, a limit of the system, a folder that is removed.
"""

import json
import resource
import shutil
import signal
import struct
import subprocess
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, TrainerCallback

from oddsmith.checkpoint.manifest import verify
from oddsmith.checkpoint.store import checkpoints
from oddsmith.cli.commands.train.launch import END_S, GRACE_S
from oddsmith.errors import OutOfMemoryError
from oddsmith.system.run_folder import FIRST_EVALUATION_FILE, read_events
from tests.command import START, environment, run_forked, save_model
from tests.fault_runs import Machine, Run, reverse_times, save_config_with_dropout
from tests.faults import memory_group, remount, small_disk
from tests.killed_runs import LORA, trainer_of
from tests.kills import committed, differences, outputs_of

STEPS = 12
GB = 10**9


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A configuration of 12 steps with dropout that saves every two of them, and what it leaves undisturbed."""
    folder = tmp_path_factory.mktemp("faults")
    save_config_with_dropout(folder, max_steps=STEPS)
    outcome = train(folder, folder / "undisturbed").end()
    assert outcome.code == 0, outcome.err
    return folder


def train(workshop: Path, run: Path, *words: object, **how) -> Run:
    return Run("train", workshop / "config.yaml", "--output-dir", run, *words, log=workshop / "said", **how)


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def assert_as_undisturbed(run: Path, workshop: Path) -> None:
    """The same weights, state and logged values; the event log may have gaps."""
    left, expected = (outputs_of(folder)._replace(events={}) for folder in (run, workshop / "undisturbed"))
    for found in (left, expected):
        found.digests.pop(FIRST_EVALUATION_FILE, None)
    assert list(differences(left, expected)) == []


def assert_goes_on(run: Path, workshop: Path, saved: int) -> None:
    """All checkpoints are complete, the newest is of step ``saved``, and resumed from it the run ends undisturbed."""
    whole = [verify(folder).step for folder in checkpoints(run)]
    assert whole == list(range(2, saved + 1, 2))
    reverse_times(run)
    resumed = train(workshop, run, "--resume").end()
    assert resumed.code == 0, resumed.err
    assert f"checkpoint-{saved}" in resumed.err
    assert_as_undisturbed(run, workshop)


# ---- Before the first step


def test_a_disk_that_is_full_already(workshop, tmp_path):
    with small_disk(tmp_path / "disk", "64k") as disk:
        (disk / "filler").write_bytes(bytes(60_000))
        outcome = train(workshop, disk / "run").end()
        assert outcome.code == 2
        message = f"output_dir {disk}/run: cannot be written (no space left on device); choose another output_dir"
        assert outcome.err == f"error: {message}\n"


def test_a_disk_with_no_room_for_a_checkpoint_and_the_model(workshop, tmp_path):
    with small_disk(tmp_path / "disk", "256k") as disk:
        outcome = train(workshop, disk / "run").end()
        assert outcome.code == 2
        line = outcome.err.splitlines()[-1]
        assert line.startswith(f"error: output_dir {disk}/run: a checkpoint and the final model take ")
        assert line.endswith(" kB are free there; make room, or choose another output_dir")
        assert not list(disk.glob("run/checkpoint-*"))


def test_a_disk_that_may_not_be_written(workshop, tmp_path):
    with small_disk(tmp_path / "disk", "4m") as disk:
        remount(disk, "ro", size="4m")
        outcome = train(workshop, disk / "run").end()
        assert outcome.code == 2
        assert "cannot be written (read-only file system); choose another output_dir" in outcome.err


def test_a_limit_on_the_size_of_files_that_is_too_low_from_the_start(workshop, tmp_path):
    outcome = train(workshop, tmp_path / "run", machine=Machine({resource.RLIMIT_FSIZE: 80_000})).end()
    assert outcome.code == 2
    message = "kB will be saved, and no file may become larger than 80 kB here; raise that limit (ulimit -f)"
    assert message in outcome.err


# ---- While it runs


def test_a_disk_that_becomes_full(workshop, tmp_path):
    """A tmpfs as run folder, and the temporary folder elsewhere; room for two checkpoints and a half."""
    one = size_of(workshop / "undisturbed" / "checkpoint-4")
    with small_disk(tmp_path / "disk", f"{int(2.6 * one) // 1024 + 250}k") as disk:
        outcome = train(workshop, disk / "run").end()
        saved = verify(checkpoints(disk / "run")[-1]).step
        assert outcome.code == 1
        assert "warning: output_dir" in outcome.err
        line = outcome.err.splitlines()[-1]
        lost = disk / "run" / f"checkpoint-{saved + 2}"
        assert line.startswith(f"error: {lost}: not saved (no space left on device): it takes ")
        assert line.endswith(
            f"; checkpoint-{saved} is complete; make room (a smaller save_total_limit keeps fewer checkpoints), then go"
            " on with --resume (in Python: train(resume_from_checkpoint=True))"
        )
        assert not lost.exists()
        remount(disk, size="8m")
        assert_goes_on(disk / "run", workshop, saved)


@pytest.mark.slow
def test_a_disk_that_becomes_full_under_two_processes(workshop, tmp_path):
    """Both end, the first one with the reason; neither waits for the other."""
    one = size_of(workshop / "undisturbed" / "checkpoint-4")
    with small_disk(tmp_path / "disk", f"{int(2.6 * one) // 1024 + 250}k") as disk:
        outcome = train(workshop, disk / "run", processes=2).end()
        saved = verify(checkpoints(disk / "run")[-1]).step
        assert outcome.code == 1
        (line,) = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
        assert f"checkpoint-{saved + 2}: not saved (no space left on device)" in line
        said = (workshop / "said-1").read_text(encoding="utf-8").splitlines()
        assert [line for line in said if line and "reducer.cpp" not in line] == []  # torch's own warning
        assert not (disk / "run" / f"checkpoint-{saved + 2}").exists()


@pytest.mark.slow
def test_a_disk_without_free_inodes(workshop, tmp_path):
    with small_disk(tmp_path / "disk", "8m", nr_inodes="45") as disk:
        outcome = train(workshop, disk / "run").end()
        saved = verify(checkpoints(disk / "run")[-1]).step
        assert outcome.code == 1
        assert "are free there, though not for this user or not for one more file (quota, df -i)" in outcome.err
        remount(disk, nr_inodes="1000")
        assert_goes_on(disk / "run", workshop, saved)


def test_a_limit_on_the_size_of_files_that_is_set_while_it_runs(workshop, tmp_path):
    run = train(workshop, tmp_path / "run")
    with run.held_at(tmp_path / "run", 4) as pid:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))
    outcome = run.end()
    saved = verify(checkpoints(tmp_path / "run")[-1]).step
    assert outcome.code == 1
    assert outcome.err.endswith(
        f"not saved (file too large); checkpoint-{saved} is complete; raise the limit on the size of files (ulimit -f),"
        " then go on with --resume (in Python: train(resume_from_checkpoint=True))\n"
    )
    assert_goes_on(tmp_path / "run", workshop, saved)


def test_a_folder_that_is_closed_while_it_runs(workshop, tmp_path):
    folder = tmp_path / "run"
    run = train(workshop, folder)
    with ExitStack() as closed:
        with run.held_at(folder, 4):
            closed.enter_context(immutable(folder))
        outcome = run.end()
    saved = verify(checkpoints(folder)[-1]).step
    assert outcome.code == 1
    assert outcome.err.endswith(
        f"not saved (operation not permitted); checkpoint-{saved} is complete; make the folder writable, then go on"
        " with --resume (in Python: train(resume_from_checkpoint=True))\n"
    )
    assert_goes_on(folder, workshop, saved)


def test_a_folder_that_is_removed_while_it_runs(workshop, tmp_path):
    """Nothing is lost but what was removed: the run makes the folder anew, and ends with its model."""
    folder = tmp_path / "run"
    run = train(workshop, folder)
    with run.held_at(folder, 4):
        shutil.rmtree(folder)
    outcome = run.end()
    assert outcome.code == 0, outcome.err
    whole = [verify(place).step for place in checkpoints(folder)]
    assert (2 not in whole, whole[-1]) == (True, STEPS)
    assert_as_undisturbed(folder, workshop)


def test_dispensable_files_that_cannot_be_written_end_no_run(workshop, tmp_path):
    folder = tmp_path / "run"
    dispensable = ("events.jsonl", "README.md", "report.html", "_held_out_pairs.json", "trainer_state.json")
    run = train(workshop, folder)
    with run.held_at(folder, 4):
        for name in dispensable:
            (folder / name).unlink(missing_ok=True)
            (folder / name).mkdir()
    outcome = run.end()
    assert outcome.code == 0, outcome.err
    warnings = [line for line in outcome.err.splitlines() if "not written (is a directory)" in line]
    assert len(warnings) == len(set(warnings))
    assert {name for name in dispensable for line in warnings if name in line} >= set(dispensable[:2])
    for name in ("events.jsonl", "trainer_state.json"):
        (folder / name).rmdir()
        shutil.copy(workshop / "undisturbed" / name, folder)
    assert_as_undisturbed(folder, workshop)


def test_a_clock_that_goes_back(workshop, tmp_path):
    """The clock goes back a day at each reading; neither the order of checkpoints nor any speed depends on it."""
    run = tmp_path / "run"
    outcome = train(workshop, run, "--save-total-limit", 2, machine=Machine(clock_jumps=True)).end()
    assert outcome.code == 0, outcome.err
    assert [verify(folder).step for folder in checkpoints(run)] == [STEPS - 2, STEPS]
    times = [event["time"] for event in read_events(run)]
    assert times == sorted(times, reverse=True)
    logged = [event for event in read_events(run) if "loss" in event]
    assert len(logged) == STEPS // 3
    assert all(event["tokens_per_second"] > 0 and event["pairs_per_second"] > 0 for event in logged)
    assert_as_undisturbed(run, workshop)


def test_memory_that_runs_out_while_it_runs(workshop, tmp_path):
    """The kernel kills the process, as in a container or batch job without more memory."""
    run = train(workshop, tmp_path / "run")
    with memory_group() as limit_memory:
        with run.held_at(tmp_path / "run", 4) as pid:
            limit_memory(pid)
        assert run.end().code == -signal.SIGKILL
    assert_goes_on(tmp_path / "run", workshop, verify(checkpoints(tmp_path / "run")[-1]).step)


def test_a_model_that_is_larger_than_the_memory(workshop, tmp_path):
    model = save_model(tmp_path / "model")
    make_huge(model)
    run = train(workshop, tmp_path / "run", "--model-name-or-path", model, machine=Machine(spare_memory=GB))
    outcome = run.end()
    assert outcome.code == 1
    assert "error: this machine is out of memory" in outcome.err
    assert "lower per_device_train_batch_size" in outcome.err


def test_the_library_raises_a_clear_error_for_short_memory_too(tmp_path):
    trainer = trainer_of(LORA, tmp_path, Greedy())
    with pytest.raises(OutOfMemoryError, match="this machine is out of memory .4,000,000.0 GB were asked for.; lower"):
        trainer.train()
    assert [verify(folder).step for folder in checkpoints(tmp_path)] == [2, 4]


class Greedy(TrainerCallback):
    """Asks for more memory than there is."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            torch.empty(10**15)


@pytest.mark.slow
def test_of_two_processes_one_that_finds_no_memory(workshop, tmp_path):
    """The kernel ends one; the other and the command end soon after and report why."""
    words = ["train", str(workshop / "config.yaml"), "--output-dir", str(tmp_path / "run"), "--num-processes", "2"]
    with memory_group() as limit_memory, (tmp_path / "said").open("w", encoding="utf-8") as said:
        command = subprocess.Popen([*START, *words, "--max-steps", "300"], stderr=said, env=environment())
        while committed(tmp_path / "run") < 4:
            assert command.poll() is None
            time.sleep(0.01)
        children = Path(f"/proc/{command.pid}/task/{command.pid}/children").read_text(encoding="ascii").split()
        limit_memory(int(children[-1]))
        began = time.monotonic()
        assert command.wait(60) == 137
        assert time.monotonic() - began < GRACE_S + END_S + 5
    assert "of 2 was ended by SIGKILL, as the kernel does when memory runs out" in (tmp_path / "said").read_text()
    steps = verify(tmp_path / "run" / f"checkpoint-{committed(tmp_path / 'run')}").step + 2
    resumed = run_forked(*words, "--max-steps", steps, "--resume")
    assert resumed.code == 0, resumed.err
    assert verify(tmp_path / "run" / f"checkpoint-{steps}").step == steps


def make_huge(model: Path) -> None:
    """Replace the weights of a model by 6 GB of zeros, which take no room: a file of one hole."""
    settings = json.loads((model / "config.json").read_text(encoding="utf-8"))
    settings |= {"hidden_size": 4096, "intermediate_size": 64_000}
    (model / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    header, end = {}, 0
    with torch.device("meta"):
        huge = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
    for name, parameter in huge.named_parameters():
        start, end = end, end + 4 * parameter.numel()
        header[name] = {"dtype": "F32", "shape": list(parameter.shape), "data_offsets": [start, end]}
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    with (model / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


@contextmanager
def immutable(folder: Path):
    """Keep everyone, root too, from creating or removing files in a folder."""
    if shutil.which("chattr") is None or subprocess.run(["chattr", "+i", folder], capture_output=True).returncode:
        pytest.skip("a folder cannot be closed to root here (chattr +i)")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", folder], check=True)
