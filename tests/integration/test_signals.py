"""``oddsmith train`` ended by batch systems, terminals and launchers: real processes, signals and exit codes."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from oddsmith.checkpoint.manifest import verify
from oddsmith.checkpoint.store import checkpoints
from oddsmith.errors import Interrupted
from oddsmith.system.signals import STOP_SIGNALS
from oddsmith.training.stopping import StopOnRequest
from tests.command import SETTINGS, START, environment, run_here, save_config, save_model, save_pairs

SOON_S = 90  # a step, a save and the end of a process, on a machine that does much else
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A configuration that would train for hours: 8 pairs, 2 pairs a step, a log line each step."""
    folder = tmp_path_factory.mktemp("workshop")
    save_model(folder / "model")
    save_pairs(folder / "pairs.jsonl", 8)
    paths = {"model_name_or_path": str(folder / "model"), "dataset_name": str(folder / "pairs.jsonl")}
    long = {"logging_steps": 1, "save_strategy": "no", "num_train_epochs": 100_000}
    save_config(folder / "config.yaml", **paths, **SETTINGS, **long)
    return folder


@contextmanager
def running(command: list, **options):
    """A process with the signal handlers of a terminal; it and its children are killed at the end."""
    options = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment(), **options}
    process = subprocess.Popen(
        [str(word) for word in command],
        preexec_fn=lambda: [signal.signal(number, signal.SIG_DFL) for number in STOP_SIGNALS],
        **options,
    )
    try:
        yield process
    finally:
        for left in tree(process.pid):
            left.kill()
        process.wait()


def tree(pid: int) -> list[psutil.Process]:
    """A process and all that it started."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def wait_for_step(process: subprocess.Popen, step: int) -> None:
    for line in process.stderr:
        if line.startswith(f"step {step}/"):
            return
    pytest.fail(f"it ended before step {step}, with exit code {process.wait()}")


def ended(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=SOON_S)
    return process.returncode, out, err


def saved_step(run: Path) -> int:
    """Verify the newest checkpoint and return its step."""
    return verify(checkpoints(run)[-1]).step


def words(workshop: Path, run: Path, *more: object) -> list:
    return ["train", workshop / "config.yaml", "--output-dir", run, *more]


def test_a_signal_stops_the_command_which_can_go_on(workshop, tmp_path, capsys):
    run = tmp_path / "run"
    with running([*START, *words(workshop, run, "--json")]) as process:
        wait_for_step(process, 2)
        process.send_signal(signal.SIGUSR1)
        code, out, err = ended(process)
    step = saved_step(run)
    assert code == Interrupted.exit_code == 75
    assert "SIGUSR1: stopping after this step, with a checkpoint; a second signal ends at once\n" in err
    message = f"stopped by SIGUSR1 after step {step} of 400000, which is saved; go on with: oddsmith train"
    assert err.splitlines()[-1] == f"interrupted: {message} {run}/run.yaml --resume"
    document = json.loads(out)
    assert (document["kind"], document["exit_code"]) == (Interrupted.__name__, 75)
    again = run_here(capsys, "train", run / "run.yaml", "--resume", "--max-steps", step + 1)
    assert again.code == 0
    assert f"done: {step + 1} steps" in again.out


@linux
def test_before_the_first_step_there_is_nothing_to_save(workshop, tmp_path):
    with running([*START, *words(workshop, tmp_path / "run")]) as process:
        status = Path(f"/proc/{process.pid}/status")
        while not int(re.search(r"SigCgt:\t(\w+)", status.read_text())[1], 16) >> (signal.SIGTERM - 1) & 1:
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        code, _, err = ended(process)
    assert code == 75
    message = "stopped by SIGTERM before the first step, so nothing is lost; start again with --resume"
    assert err == f"interrupted: {message}\n"


@pytest.fixture
def interrupt(monkeypatch):
    """Presses Ctrl-C in this process, so many times, with so many steps done."""

    def with_steps_done(steps: int, times: int = 1) -> None:
        def on_step_begin(self, args, state, control, **kwargs):
            for _ in range(times if state.global_step == steps else 0):
                signal.raise_signal(signal.SIGINT)
                time.sleep(1.2 if times > 1 else 0.1)

        monkeypatch.setattr(StopOnRequest, "on_step_begin", on_step_begin)

    found = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield with_steps_done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, found)


def test_a_second_ctrl_c_ends_at_once(workshop, tmp_path, capsys, interrupt):
    run = tmp_path / "run"
    interrupt(3, times=2)
    outcome = run_here(capsys, *words(workshop, run, "--save-strategy", "steps", "--save-steps", 2, "--json"))
    assert outcome.code == json.loads(outcome.out)["exit_code"] == 130
    assert outcome.err.splitlines()[-1] == "interrupted: ended at once, on request"
    assert saved_step(run) == 2


def test_ctrl_c_in_the_last_step_lets_a_run_end_that_has_only_to_be_saved(workshop, tmp_path, capsys, interrupt):
    interrupt(2)
    assert run_here(capsys, *words(workshop, tmp_path / "run", "--max-steps", 3)).code == 0
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_the_evaluation_after_the_last_step_can_be_stopped_and_made_up_for(workshop, tmp_path, capsys, interrupt):
    run = tmp_path / "run"
    interrupt(2)
    stopped = run_here(capsys, *words(workshop, run, "--max-steps", 3, "--test-split-size", 2))
    assert stopped.code == 75
    assert "stopped by SIGINT after step 3 of 3, which is saved" in stopped.err
    assert not (run / "model.safetensors").exists()
    again = run_here(capsys, "train", run / "run.yaml", "--resume")
    assert again.code == 0
    assert (run / "model.safetensors").is_file()
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["event"] == "evaluate"] == [3]


def test_a_time_limit_ends_a_run_in_time(workshop, tmp_path, capsys):
    run = tmp_path / "run"
    outcome = run_here(capsys, *words(workshop, run, "--time-limit", "1s"))  # which has long passed in this process
    assert outcome.code == 75
    assert "interrupted: stopped by the time limit after step 1 of 400000, which is saved" in outcome.err
    assert saved_step(run) == 1


@pytest.mark.slow
def test_all_processes_of_a_job_are_signalled_and_those_of_a_run_stop_after_the_same_step(workshop, tmp_path):
    """As Slurm and systemd do it: the launcher, what it started, and the workers of their data loaders."""
    run = tmp_path / "run"
    evaluating = ("--test-split-size", 4, "--eval-strategy", "steps", "--eval-steps", 1)
    more = ("--num-processes", 2, "--dataloader-num-workers", 1, *evaluating)
    with running([*START, *words(workshop, run, *more)]) as process:
        wait_for_step(process, 2)
        everyone = tree(process.pid)
        assert len(everyone) >= 5
        listening = [socket for one in everyone for socket in one.net_connections() if socket.status == "LISTEN"]
        assert {socket.laddr.ip for socket in listening} == {"127.0.0.1"}  # the store, and gloo's
        for one in everyone:
            one.send_signal(signal.SIGTERM)
        code, _, err = ended(process)
        assert not [one for one in everyone if one.is_running()]
    assert code == 75
    assert err.count("stopped by SIGTERM after step") == 1
    assert verify(checkpoints(run)[-1]).world_size == 2


@pytest.mark.slow
def test_when_the_launcher_is_killed_its_processes_stop_with_a_checkpoint(workshop, tmp_path):
    run = tmp_path / "run"
    with running([*START, *words(workshop, run, "--num-processes", 2)]) as process:
        wait_for_step(process, 2)
        _, *children = tree(process.pid)
        process.kill()
        _, alive = psutil.wait_procs(children, timeout=SOON_S)
        assert not alive
    assert saved_step(run) >= 2


@pytest.mark.slow
def test_a_closed_terminal_stops_the_run_with_a_checkpoint(workshop, tmp_path):
    run = tmp_path / "run"
    ours, theirs = pty.openpty()
    options = {"stdin": theirs, "stdout": theirs, "stderr": theirs, "start_new_session": True}
    controlling = [sys.executable, "-c", "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"]
    controlling[-1] += "os.execv(sys.argv[1], sys.argv[1:])"
    with running([*controlling, *START, *words(workshop, run)], **options) as process:
        os.close(theirs)
        shown = b""
        while b"3/400000" not in shown:
            shown += os.read(ours, 1000)
        os.close(ours)
        assert process.wait(SOON_S) == 75
    assert saved_step(run) >= 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "exit_code"),
    [
        (["torch.distributed.run", "--nproc-per-node", "2"], 1),
        (["accelerate.commands.launch", "--cpu", "--num_processes", "1"], -signal.SIGTERM),
    ],
    ids=["torchrun", "accelerate"],
)
def test_other_launchers_leave_a_checkpoint_though_their_exit_code_is_their_own(
    launcher, exit_code, workshop, tmp_path
):
    run = tmp_path / "run"
    with running([sys.executable, "-m", *launcher, *START[1:], *words(workshop, run)]) as process:
        wait_for_step(process, 2)
        # torchrun passes it on; accelerate does not, and a batch system signals all processes by itself.
        for one in tree(process.pid)[: 1 if "torch" in launcher[0] else None]:
            one.send_signal(signal.SIGTERM)
        code, _, err = ended(process)
    assert code == exit_code
    assert "stopped by SIGTERM after step" in err
    assert saved_step(run) >= 2
