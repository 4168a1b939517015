"""A process of a probe answers, fails, is killed, or is left alone; here each starts anew, as where there is a GPU."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from oddsmith.tuning import channel
from oddsmith.tuning.channel import Ended, Steps, converse


@pytest.fixture(autouse=True)
def with_gpu(monkeypatch):
    monkeypatch.setattr(channel, "GPU_DRIVERS", ("/",))


def evaluated(connection, task):
    sys.stdout.write("noise of a library\n")
    asked = []
    for step in range(task["steps"]):
        connection.send(Steps(step, task["steps"]))
        asked.append(connection.recv())
    connection.send({"asked": asked})


def broken(connection, task):
    raise RuntimeError("no such kernel")


def killed(connection, task):
    connection.send(Steps(1, 2))
    os.kill(os.getpid(), signal.SIGKILL)


def interrupted(connection, task):
    os.kill(os.getpid(), signal.SIGINT)
    connection.send({"survived": True})


def waiting(connection, task):
    try:
        connection.send(os.getpid())
        time.sleep(60)
    finally:
        Path(task["ended"]).touch()


def test_it_is_answered_and_its_noise_goes_to_the_log(tmp_path, capfd):
    log = tmp_path / "log"

    def answer(message):
        return message.done < 1 if isinstance(message, Steps) else None

    last = converse(evaluated, {"steps": 3}, log, answer, [])
    assert last == {"asked": [True, False, False]}
    assert log.read_text(encoding="utf-8") == "noise of a library\n"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("body", "how"),
    [(broken, "RuntimeError: no such kernel"), (killed, "ended by SIGKILL, as when memory runs out")],
)
def test_how_it_failed_is_said(body, how, tmp_path):
    assert converse(body, {}, tmp_path / "log", lambda message: None, []) == Ended(how)


def test_ctrl_c_is_left_to_the_search(tmp_path):
    assert converse(interrupted, {}, tmp_path / "log", lambda message: None, []) == {"survived": True}


def test_it_does_not_outlive_an_interrupted_search(tmp_path):
    probes = []

    def interrupt(message):
        probes.append(message)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        converse(waiting, {"ended": str(tmp_path / "ended")}, tmp_path / "log", interrupt, [])
    assert (tmp_path / "ended").exists()  # it could tidy up
    with pytest.raises(ProcessLookupError):
        os.kill(probes[0], 0)
