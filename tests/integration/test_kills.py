"""A run that is killed and resumed ends with the same bytes and log lines as an undisturbed one.

`make test-kills` does the same over all variants of tests/killed_runs.py, with as many kills as asked for.
"""

import subprocess
import time
from pathlib import Path

import pytest

from tests.command import START, environment, run_forked
from tests.fault_runs import save_config_with_dropout
from tests.killed_runs import BESIDE, STREAM
from tests.kills import Outputs, Trials, committed, differences, outputs_of, steps_saved


@pytest.mark.parametrize(
    ("variant", "aims"),
    [
        pytest.param(BESIDE, ("saving", "training"), marks=pytest.mark.slow),
        (STREAM, ("evaluating",)),
        pytest.param(BESIDE.together(), ("saving",), marks=pytest.mark.slow),
    ],
    ids=("saved beside", "stream", "two processes, saved beside"),
)
def test_a_killed_run_ends_like_the_undisturbed_one(variant, aims, tmp_path):
    trials = Trials(variant, tmp_path / "runs")
    trial = trials.run("killed", kills=len(aims), aims=aims)
    assert trial.wrong == []
    assert len(trial.kills) == len(aims)


@pytest.fixture
def config(tmp_path) -> Path:
    """A run of 18 steps."""
    return save_config_with_dropout(tmp_path, num_train_epochs=4)


def test_the_command_goes_on_from_where_it_was_killed(config, tmp_path):
    folder, words = (tmp_path / "killed", ["train", str(config), "--output-dir"])
    assert run_forked(*words, tmp_path / "undisturbed").code == 0
    killed = subprocess.Popen([*START, *words, str(folder)], stderr=subprocess.DEVNULL, env=environment())
    wait_for_save(killed, folder, after=4)
    killed.kill()
    assert killed.wait() == -9
    saved = committed(folder)
    assert saved >= 4
    resumed = run_forked(*words, folder, "--resume", "auto")
    assert resumed.code == 0, resumed.err
    assert f"checkpoint-{saved}" in resumed.err
    assert list(differences(outputs_of(folder), outputs_of(tmp_path / "undisturbed"))) == []


@pytest.mark.slow
def test_under_torchrun_too(config, tmp_path):
    """torchrun ends the other process when one is killed; started again, both go on."""
    torchrun = [START[0], "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, *START[1:], "train", str(config), "--output-dir"]
    quiet = {"stderr": subprocess.DEVNULL, "env": environment()}
    assert subprocess.run([*command, str(tmp_path / "undisturbed")], **quiet, timeout=200).returncode == 0
    folder = tmp_path / "killed"
    launcher = subprocess.Popen([*command, str(folder)], **quiet)
    wait_for_save(launcher, folder, after=4)
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text(encoding="ascii").split()
    subprocess.run(["kill", "-9", children[-1]], check=True)
    assert launcher.wait(60) == 1
    assert subprocess.run([*command, str(folder), "--resume", "auto"], **quiet, timeout=200).returncode == 0
    assert list(differences(outputs_of(folder), outputs_of(tmp_path / "undisturbed"))) == []


def wait_for_save(process: subprocess.Popen, folder: Path, after: int) -> None:
    """Wait until a checkpoint is being written and one of at least that step is complete."""
    while process.poll() is None and not (committed(folder) >= after and steps_saved(folder)[-1] > committed(folder)):
        time.sleep(0.001)


def test_a_difference_is_seen():
    line, digests = {"step": 3, "loss": 1.5}, {"model.safetensors": "ab"}
    expected = Outputs(digests, [line], {("log", 3): line})
    assert list(differences(expected, expected)) == []
    other = line | {"loss": 1.25}
    found = differences(Outputs({"model.safetensors": "ac"}, [other, line], {("log", 3): other}), expected)
    assert list(found) == [
        "bytes of model.safetensors",
        "2 log lines instead of 1",
        "log line of step 3: loss is 1.25 instead of 1.5",
        "event log of step 3",
    ]
