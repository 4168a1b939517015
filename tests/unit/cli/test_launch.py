"""Several processes of one run: what each is told, whose exit code counts, who may speak, and how they are stopped."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

import oddsmith
from oddsmith.cli.commands.train.launch import launch
from oddsmith.system.own_processes import run_module


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr("oddsmith.cli.commands.train.launch.GRACE_S", 1.0)
    monkeypatch.setattr("oddsmith.cli.commands.train.launch.POLL_S", 0.02)


def program(code: str) -> list[str]:
    head = "import os, pathlib, signal, sys, time; rank = int(os.environ['RANK'])\n"
    return [sys.executable, "-S", "-c", head + textwrap.dedent(code)]


def test_each_process_knows_its_place(tmp_path):
    names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT"
    code = f"pathlib.Path({str(tmp_path)!r}, str(rank)).write_text(' '.join(os.environ[n] for n in {names.split()}))"
    assert launch(program(code), 3) == 0
    told = [(tmp_path / str(rank)).read_text().split() for rank in range(3)]
    assert [line[:5] for line in told] == [[str(rank), str(rank), "3", "3", "127.0.0.1"] for rank in range(3)]
    assert len({line[5] for line in told}) == 1


def test_only_the_first_process_speaks(capfd):
    assert launch(program("print('I am', rank); print('err', rank, file=sys.stderr)"), 3) == 0
    assert capfd.readouterr() == ("I am 0\n", "err 0\n")


def test_where_all_fail_alike_the_first_tells_why(capfd):
    assert launch(program("time.sleep(0.3 * (rank == 0)); print('why', file=sys.stderr); sys.exit(2)"), 2) == 2
    assert capfd.readouterr().err == "why\n"


def test_where_one_fails_alone_it_is_heard_and_the_others_are_ended(capfd):
    code = "print('why', file=sys.stderr) if rank == 1 else time.sleep(60); sys.exit(75)"
    assert launch(program(code), 3) == 75
    assert capfd.readouterr().err == "error: process 1 of 3 failed; it said:\n  why\n"


@pytest.mark.parametrize("rank", [0, 1])
def test_of_a_process_that_was_killed_it_is_said_though_the_others_fail_for_want_of_it(rank, capfd):
    code = f"os.kill(os.getpid(), signal.SIGKILL) if rank == {rank} else time.sleep(0.2); sys.exit(1)"
    assert launch(program(code), 2) == 128 + signal.SIGKILL
    assert capfd.readouterr().err.startswith(
        f"error: process {rank} of 2 was ended by SIGKILL, as the kernel does when memory runs out (see dmesg); lower"
    )


def test_a_process_that_crashed_is_said_to_have(capfd):
    assert launch(program("os.kill(os.getpid(), signal.SIGSEGV)"), 2) == 128 + signal.SIGSEGV
    assert "error: process 0 of 2 was ended by SIGSEGV\n" in capfd.readouterr().err


def test_a_process_that_does_not_listen_yet_when_it_is_asked_to_stop_has_nothing_to_save():
    launched = f"launch({program('time.sleep(60)')!r}, 2)"
    starter = f"import sys; from oddsmith.cli.commands.train.launch import launch; sys.exit({launched})"
    process = subprocess.Popen([sys.executable, "-c", starter], stderr=subprocess.PIPE, text=True)
    while len(psutil.Process(process.pid).children()) < 2:
        assert process.poll() is None
    time.sleep(0.2)
    process.send_signal(signal.SIGUSR1)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75
    assert err == (
        "interrupted: stopped by SIGUSR1 before the first step, so nothing is lost; start again with --resume\n"
    )


def test_a_signal_reaches_every_process_once(tmp_path):
    code = f"""
    heard = []
    signal.signal(signal.SIGINT, lambda *_: heard.append(1))
    folder = pathlib.Path({str(tmp_path)!r})
    (folder / f"ready{{rank}}").touch()
    deadline = time.monotonic() + 20
    while not heard and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    (folder / f"heard{{rank}}").write_text(str(len(heard)))
    sys.exit(75)
    """
    starter = (
        f"import sys; from oddsmith.cli.commands.train.launch import launch; sys.exit(launch({program(code)!r}, 2))"
    )
    process = subprocess.Popen([sys.executable, "-c", starter])
    while not all((tmp_path / f"ready{rank}").exists() for rank in range(2)):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 75
    assert [(tmp_path / f"heard{rank}").read_text() for rank in range(2)] == ["1", "1"]


def test_the_processes_meet_on_the_loopback_interface_alone(capfd):
    code = """
    import psutil
    from oddsmith.cli.commands.train.launch import join_launcher
    join_launcher()
    import torch, torch.distributed as distributed
    distributed.init_process_group("gloo")
    distributed.all_reduce(torch.ones(1))
    connections = psutil.Process().net_connections()
    print({one.laddr.ip for one in connections if one.status == "LISTEN"}, flush=True) if rank == 0 else None
    distributed.barrier()
    """
    command = [sys.executable, *program(code)[2:]]  # with the installed libraries
    assert launch(command, 2) == 0
    assert capfd.readouterr().out == "{'127.0.0.1'}\n"


def test_no_process_runs_what_lies_in_the_working_folder(tmp_path):
    for module in ("yaml", "torch", "typer", "numpy", "oddsmith", "transformers", "difflib"):
        (tmp_path / f"{module}.py").write_text("open('ran', 'a').write(__name__)\nraise SystemExit(9)\n")
    command = [*run_module("oddsmith.cli.main"), "train", "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert not (tmp_path / "ran").exists()
    assert done.returncode == 0, done.stderr


def test_every_module_that_we_start_is_started_by_run_module():
    sources = Path(oddsmith.__file__).parent.rglob("*.py")
    found = [path.name for path in sources if re.search(r"sys\.executable[^\n]*-m\b", path.read_text())]
    assert found == ["own_processes.py"]
