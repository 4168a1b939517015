"""A run is not affected when its monitor is killed, frozen or has a full disk."""

import json
import resource
import signal
import socket
import subprocess
import time
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import pytest

from tests.command import SETTINGS, START, environment, save_config, save_model, save_pairs

STEPS = 60
PATIENCE_S = 120


class Monitor:
    """The real command on a folder of runs.

    Args:
        runs: The folder.
        without_disk: No byte can be written to any file, and what it says goes to a device that is full.
    """

    def __init__(self, runs: Path, without_disk: bool = False):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        words = [*START, "monitor", str(runs), "--port", str(self.port)]
        with open("/dev/full" if without_disk else "/dev/null", "w") as talk:
            self.process = subprocess.Popen(
                words, stdout=talk, stderr=talk, env=environment(), preexec_fn=write_nothing if without_disk else None
            )

    def ask(self, path: str) -> dict | list | None:
        """What it answers; ``None`` where it does not."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path)
            return json.loads(connection.getresponse().read())
        except (OSError, HTTPException):
            return None
        finally:
            connection.close()

    def watch(self) -> socket.socket:
        """A page that waits for news."""
        page = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        page.sendall(f"GET /api/changes HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n\r\n".encode())
        assert b"200 OK" in page.recv(4096)
        return page

    def step(self) -> int:
        """How far the run is, as the page shows it."""
        return max((run["step"] for run in self.ask("/api/runs") or ()), default=0)


def write_nothing() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


@pytest.fixture
def monitors(tmp_path):
    """One to be killed, one to be frozen, one without a disk."""
    runs = tmp_path / "runs"
    runs.mkdir()
    started = [Monitor(runs), Monitor(runs), Monitor(runs, without_disk=True)]
    yield started
    for monitor in started:
        monitor.process.kill()
        monitor.process.wait()


def wait_until(so) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def train(config: Path, folder: Path) -> subprocess.Popen:
    words = [*START, "train", str(config), "--output-dir", str(folder)]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment())


def logged(folder: Path) -> list[dict]:
    """Return the losses and evaluations in the event log, without what depends on time."""
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    kept = [event for event in events if event["event"] in ("log", "evaluate", "pairs")]
    timing = ("time", "runtime", "per_second", "memory_gib")
    return [{name: value for name, value in event.items() if not name.endswith(timing)} for event in kept]


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_monitor_that_is_killed_frozen_or_without_a_disk_does_not_touch_the_run(tmp_path, monitors):
    model, pairs = save_model(tmp_path / "model"), save_pairs(tmp_path / "pairs.jsonl")
    data = {"model_name_or_path": str(model), "dataset_name": str(pairs), "test_split_size": 4}
    often = {"max_steps": STEPS, "logging_steps": 1, "eval_strategy": "steps", "eval_steps": 10, "save_steps": 10}
    config = save_config(tmp_path / "run.yaml", **SETTINGS, **data, **often)
    killed, frozen, without_disk = monitors
    for monitor in monitors:
        wait_until(lambda monitor=monitor: monitor.ask("/api/runs") == [])

    alone = train(config, tmp_path / "alone")
    watched = train(config, tmp_path / "runs" / "watched")
    wait_until(lambda: killed.step() > 0)
    pages = [monitor.watch() for monitor in monitors]
    assert watched.poll() is None  # it goes on while this happens:
    killed.process.kill()
    frozen.process.send_signal(signal.SIGSTOP)
    assert watched.poll() is None
    seen_at = without_disk.step()
    endings = [process.communicate(timeout=PATIENCE_S)[1] for process in (alone, watched)]

    assert [alone.returncode, watched.returncode] == [0, 0], endings
    assert killed.process.wait() == -signal.SIGKILL
    assert 0 < seen_at < STEPS
    assert without_disk.process.poll() is None
    wait_until(lambda: without_disk.step() == STEPS)
    (run,) = without_disk.ask("/api/runs")
    assert run["state"] == "finished"
    assert logged(tmp_path / "runs" / "watched") == logged(tmp_path / "alone")
    assert files(tmp_path / "runs" / "watched") == files(tmp_path / "alone")
    weights = [folder / "model.safetensors" for folder in (tmp_path / "alone", tmp_path / "runs" / "watched")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    for page in pages:
        page.close()
