"""An error that all processes of a run share is said once; the store at which they meet is a real one."""

import threading
from datetime import timedelta

import pytest
from torch.distributed import TCPStore

from oddsmith.cli.terminal import one_voice
from oddsmith.cli.terminal.console import say_error


@pytest.fixture
def launched(monkeypatch):
    """The environment of a process that torchrun has started, and its store."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=5))
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": "2", "RANK": "1"}
    for name, value in {**variables, "TORCHELASTIC_RUN_ID": "one", "TORCHELASTIC_USE_AGENT_STORE": "True"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(one_voice, "WAIT_S", 0.5)
    return store


def say_as(monkeypatch, rank: int, text: str) -> None:
    monkeypatch.setenv("RANK", str(rank))
    say_error(text)


def test_what_the_first_process_said_is_not_said_again(launched, monkeypatch, capsys):
    say_as(monkeypatch, 0, "no such file")
    assert "no such file" in capsys.readouterr().err
    say_as(monkeypatch, 1, "no such file")
    assert capsys.readouterr().err == ""


def test_a_process_waits_for_the_first_one(launched, monkeypatch, capsys):
    first = threading.Timer(0.2, launched.set, (one_voice._key("no such file"), "said"))
    first.start()
    say_as(monkeypatch, 1, "no such file")
    first.join()
    assert capsys.readouterr().err == ""


def test_what_the_first_process_did_not_say_is_said(launched, monkeypatch, capsys):
    say_as(monkeypatch, 0, "another process of this run has ended")
    say_as(monkeypatch, 1, "no such file")
    assert "no such file" in capsys.readouterr().err


def test_a_restarted_run_says_it_again(launched, monkeypatch, capsys):
    say_as(monkeypatch, 0, "no such file")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    capsys.readouterr()
    say_as(monkeypatch, 1, "no such file")
    assert "no such file" in capsys.readouterr().err


def test_without_a_store_each_process_says_it(launched, monkeypatch, capsys):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    say_as(monkeypatch, 1, "no such file")
    assert "no such file" in capsys.readouterr().err


def test_a_launcher_that_has_ended_keeps_no_error_back(launched, monkeypatch, capsys):
    monkeypatch.setenv("MASTER_PORT", "1")
    say_as(monkeypatch, 1, "no such file")
    assert "no such file" in capsys.readouterr().err
