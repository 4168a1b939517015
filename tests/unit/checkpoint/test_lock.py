"""One process at a time in a run folder, and a dead one holds nothing."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from oddsmith.checkpoint.lock import held
from oddsmith.cli.commands.train.run_folder import check_folder
from oddsmith.errors import ConfigError

HOLDER = """
import sys, time
from pathlib import Path
from oddsmith.checkpoint.lock import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the run folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_refused_with_the_first_ones_number(tmp_path, holder):
    expected = f"output_dir {tmp_path}/run is in use by process {holder.pid}; wait for it or end it, or choose"
    with pytest.raises(ConfigError) as caught, held(tmp_path / "run"):
        pass
    assert str(caught.value).startswith(expected)


def test_a_dead_owners_lock_is_taken_over(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    while psutil.Process(holder.pid).status() != psutil.STATUS_ZOMBIE:  # dead, though nobody has waited for it
        time.sleep(0.01)
    with held(tmp_path / "run"):
        assert f'"pid": {os.getpid()}' in (tmp_path / "run" / "_lock.json").read_text()


def test_a_process_enters_its_own_lock_again(tmp_path):
    with held(tmp_path / "run"), held(tmp_path / "run"):
        pass
    assert not (tmp_path / "run").exists()


def test_a_folder_with_something_in_it_stays(tmp_path):
    with held(tmp_path / "run"):
        (tmp_path / "run" / "run.yaml").touch()
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["run.yaml"]


def test_what_an_owner_that_was_killed_left_is_removed(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "_lock.json.7-abcd.partial").touch()
    check_folder(tmp_path / "run", resume=False, overwrite=False)  # it is no user data
    with held(tmp_path / "run"):
        assert {file.name for file in (tmp_path / "run").iterdir()} == {"_lock", "_lock.json"}
    assert not (tmp_path / "run").exists()
