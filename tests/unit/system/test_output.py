"""What cannot be printed: messages are lost, a lost result is an error, and a reader that has left ends it quietly."""

import json
import os
import shlex
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import partial

import pytest

from oddsmith.errors import OutputError
from oddsmith.system.output import READER_LEFT, _Descriptor
from tests.command import START, environment

COMMAND = shlex.join(START)
slow = partial(pytest.param, marks=pytest.mark.slow)
FULL = "the result cannot be printed on stdout (no space left on device)"


def shell(line: str, **variables: str) -> subprocess.CompletedProcess:
    """Run a line of bash, in which ``oddsmith`` is the command; the exit code is that of the first that fails."""
    script = f"set -o pipefail; {line.replace('oddsmith', COMMAND)}"
    environment_ = environment() | variables
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, env=environment_)


@pytest.fixture
def pipe():
    """A pipe, and what is left open of it is closed."""
    ends = list(os.pipe())
    yield ends
    for end in ends:
        with suppress(OSError):
            os.close(end)


@pytest.mark.parametrize(
    ("line", "code", "out", "err"),
    [
        ("oddsmith monitor --once --json FOLDER > /dev/full", 1, "", f"error: {FULL}\n"),
        ("oddsmith --version >&-", 1, "", "error: the result cannot be printed on stdout (bad file descriptor)\n"),
        ("oddsmith --help | true", READER_LEFT, "", ""),
        ("oddsmith trian 2> /dev/full", 2, "", ""),
        slow("oddsmith monitor --once FOLDER <&- 2>&-", 0, "no runs here\n", ""),
        slow("oddsmith --version > /dev/full", 1, "", f"error: {FULL}\n"),
        slow("oddsmith monitor --once --json FOLDER | true", READER_LEFT, "", ""),
        slow("oddsmith monitor --once FOLDER | true", READER_LEFT, "", ""),
        slow("oddsmith train --help-all | true", READER_LEFT, "", ""),
        slow("oddsmith monitor --once FOLDER 2> /dev/full", 0, "no runs here\n", ""),
        slow("oddsmith data check nowhere 2>&-", 2, "", ""),
        slow("oddsmith trian 2>&1 | true", 2, "", ""),
    ],
)
def test_commands_whose_output_goes_nowhere(line, code, out, err, tmp_path):
    done = shell(line.replace("FOLDER", str(tmp_path)))
    assert (done.returncode, done.stdout, done.stderr) == (code, out, err)


def test_a_name_that_the_encoding_lacks_is_printed_in_escapes(tmp_path):
    run = tmp_path / "läuft"
    run.mkdir()
    (run / "events.jsonl").write_text('{"event": "start", "step": 0, "time": 1.0, "max_steps": 3}\n', encoding="utf-8")
    shown = shell(f"oddsmith monitor --once {run}", PYTHONIOENCODING="ascii:strict")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith("l\\xe4uft: ")
    document = shell(f"oddsmith monitor --once --json {run}", PYTHONIOENCODING="ascii:strict")
    assert (document.returncode, document.stdout.isascii()) == (0, True)
    assert json.loads(document.stdout)["runs"][0]["name"] == "läuft"


def test_a_closed_descriptor_is_not_that_of_the_next_file(tmp_path):
    """Else what a library prints would be written into a checkpoint."""
    program = "from oddsmith.system.output import guard_output as g; g(); print(open('file').fileno() > 2)"
    (tmp_path / "file").touch()
    line = f"cd {tmp_path}; {shlex.quote(sys.executable)} -c {shlex.quote(program)} <&- 2>&-"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, env=environment())
    assert done.stdout == "True\n"


def test_a_reader_that_leaves_is_no_error_for_messages_and_ends_results_once(pipe):
    os.close(pipe[0])
    assert _Descriptor(pipe[1], is_result=False).write(b"message") == 7
    result = _Descriptor(pipe[1], is_result=True)
    with pytest.raises(SystemExit) as ended:
        result.write(b"result")
    assert ended.value.code == READER_LEFT
    assert result.write(b"what Python still had of it") == 27


def test_a_full_disk_is_an_error_for_results_alone():
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        assert _Descriptor(full, is_result=False).write(b"message") == 7
        with pytest.raises(OutputError, match="no space left on device"):
            _Descriptor(full, is_result=True).write(b"result")
    finally:
        os.close(full)


def test_a_pipe_that_does_not_block_gets_all_of_a_result_and_messages_while_it_is_read(pipe):
    os.set_blocking(pipe[1], False)
    size, got = 300_000, []

    def read() -> None:
        while sum(got) < size:
            time.sleep(0.001)
            got.append(len(os.read(pipe[0], 30_000)))

    reader = threading.Thread(target=read)
    reader.start()
    assert _Descriptor(pipe[1], is_result=True).write(bytes(size)) == size
    reader.join()
    assert sum(got) == size


def test_messages_to_a_pipe_that_nobody_reads_cost_no_more_than_a_moment(pipe, monkeypatch):
    monkeypatch.setattr("oddsmith.system.output.PATIENCE_S", 0.2)
    os.set_blocking(pipe[1], False)
    messages = _Descriptor(pipe[1], is_result=False)
    began = time.monotonic()
    for _ in range(100):
        messages.write(bytes(10_000))
    assert time.monotonic() - began < 1
    os.read(pipe[0], 1_000_000)
    messages.write(b"read again")
    assert os.read(pipe[0], 100) == b"read again"
