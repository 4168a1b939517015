"""Work spread over processes: the order of results, errors, and that no process is left behind."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from oddsmith.data import processes as processes_module
from oddsmith.data.processes import CAN_FORK, parallel_map, parallel_shares, usable_processes
from oddsmith.errors import OddsmithError, RowError

pytestmark = pytest.mark.skipif(not CAN_FORK, reason="processes start anew here, which takes seconds")


def square(number: int) -> tuple[int, int]:
    return number * number, os.getpid()


def refuse(number: int) -> int:
    if number == 3:
        raise RowError("no pair", "found nothing", number, "pairs.jsonl")
    return number


def die(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail(number: int) -> None:
    raise KeyError("a mistake of ours")


def large(number: int) -> bytes:
    return bytes(1_000_000)


@pytest.fixture(autouse=True)
def no_process_is_left():
    before = multiprocessing.active_children()  # such as a data loader's, of a test that has not been cleared up yet
    yield
    assert [process for process in multiprocessing.active_children() if process not in before] == []


@pytest.mark.parametrize("items", (0, 1, 2, 3, 7, 20))
@pytest.mark.parametrize("processes", (1, 2, 3))
def test_order(items, processes):
    results = list(parallel_map(square, range(items), processes))
    assert [value for value, _ in results] == [n * n for n in range(items)]
    pids = {pid for _, pid in results}
    if processes > 1 and items > 1:
        assert len(pids) == min(items, processes)
        assert os.getpid() not in pids
    else:
        assert pids <= {os.getpid()}


@pytest.mark.parametrize("processes", (1, 2))
def test_error_of_an_item_is_raised_as_it_is(processes):
    results = parallel_map(refuse, range(8), processes)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(RowError, match=r"^pairs\.jsonl, row 3: no pair: found nothing$"):
        next(results)


def test_process_that_was_killed():
    message = r"a process that works on the rows ended with exit code -9 .*dataset_num_proc: 1"
    with pytest.raises(OddsmithError, match=message):
        list(parallel_map(die, range(4), 2))


def test_mistake_of_ours_is_shown(capfd):
    with pytest.raises(OddsmithError, match="exit code 1 "):
        list(parallel_map(fail, range(4), 2))
    assert "a mistake of ours" in capfd.readouterr().err


@pytest.mark.parametrize("handler", (signal.SIG_DFL, lambda *_: None), ids=("default", "own"))
def test_may_be_left_early_whatever_handler_of_signals_the_caller_has(handler):
    before = signal.signal(signal.SIGTERM, handler)
    try:
        results = parallel_map(large, range(100), 2)
        next(results)
        results.close()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_setting_of_the_tokenizers_library_is_put_back(monkeypatch):
    for value in ("true", None):
        monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
        if value:
            monkeypatch.setenv("TOKENIZERS_PARALLELISM", value)
        list(parallel_map(square, range(4), 2))
        assert os.environ.get("TOKENIZERS_PARALLELISM") == value


def test_cores_are_shared_with_the_other_processes_of_a_run(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    assert usable_processes() == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert usable_processes() == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert usable_processes() == 1
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    monkeypatch.setattr(processes_module, "CAN_FORK", False)
    assert usable_processes() == 1


def test_process_that_may_have_none_of_its_own(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    receiving, sending = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=lambda: sending.send(usable_processes()), daemon=True)
    process.start()
    assert receiving.recv() == 1
    process.join()


def run(script: str, path: Path, **more) -> subprocess.Popen:
    file = path / "script.py"
    file.write_text(script, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, file], env=environment, **pipes, **more)


def test_script_without_a_guard_after_tokenizers_used_threads(tmp_path):
    script = """
from tokenizers import Tokenizer, models
from oddsmith.data import processes as processes_module
from oddsmith.data.processes import parallel_map
tokenizer = Tokenizer(models.BPE({"a": 0}, []))
tokenizer.encode_batch(["a"] * 100)
print(list(parallel_map(lambda text: tokenizer.encode_batch([text] * 9)[8].ids, ["a", "aa", "aaa"], 2)))
"""
    output = run(script, tmp_path).communicate(timeout=60)
    assert output == ("[[0], [0, 0], [0, 0, 0]]\n", "")


def test_processes_end_with_the_one_that_started_them(tmp_path):
    script = """
import os, time
from oddsmith.data import processes as processes_module
from oddsmith.data.processes import parallel_map
def work(number):
    time.sleep(0.05)
    return os.getpid()
for pid in parallel_map(work, range(10_000), 3):
    print(pid, flush=True)
"""
    program = run(script, tmp_path)
    pids = {int(program.stdout.readline()) for _ in range(3)}
    program.kill()
    program.wait()
    deadline = time.monotonic() + 5
    while (alive := [pid for pid in pids if is_running(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    program.stdout.close()
    program.stderr.close()
    assert len(pids) == 3
    assert not alive


def is_running(pid: int) -> bool:
    """Whether a process runs; one that ended and was not yet collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def every(share: int, shares: int):
    """Seven results, of which each process makes its own without knowing how many there are."""
    yield from (number * number for number in range(7) if number % shares == share)


def faulty(share: int, shares: int):
    yield from (1 // (share == 0) for _ in range(share + 1))


@pytest.mark.parametrize("processes", (1, 2, 3, 9))
def test_a_stream_is_dealt_out_in_its_order(processes):
    assert list(parallel_shares(every, processes)) == [n * n for n in range(7)]


def test_an_end_before_the_last_result_is_an_error():
    with pytest.raises(OddsmithError, match="a process that works on the rows ended with exit code 1"):
        list(parallel_shares(faulty, 2))
