"""Who hears a request to stop, how many requests two signals are, and what a stuck process does."""

import json
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from oddsmith.system.signals import STOP_SIGNALS

HEAD = """
import ctypes, json, multiprocessing, os, signal, subprocess, sys, threading, time
import oddsmith.system.signals as signals
from oddsmith.system.signals import StopSignals
told = []
def hear(number):
    signal.raise_signal(number)
    time.sleep(0.1)
"""


def run(code: str, *words: str) -> subprocess.CompletedProcess:
    """Run a program in a process of its own, without torch."""
    # A shell starts what runs in the background with some signals ignored; a terminal does not.
    return subprocess.run(
        [sys.executable, "-c", HEAD + textwrap.dedent(code), *words], capture_output=True, text=True, timeout=60,
        preexec_fn=lambda: [signal.signal(number, signal.SIG_DFL) for number in STOP_SIGNALS],
    )  # fmt: skip


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
def test_before_there_is_something_to_save_a_request_ends_the_process_at_once(number):
    done = run("with StopSignals():\n    hear(int(sys.argv[1]))\n    print('still here')", str(int(number)))
    assert (done.returncode, done.stdout, done.stderr) == (75, "", "")


def test_the_first_request_is_kept_and_reported_and_its_copies_are_no_second():
    done = run("""
    with StopSignals() as stop:
        stop.remember(told.append)
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1):
            hear(number)
        print(json.dumps([stop.heard, told]))
    """)
    assert json.loads(done.stdout) == ["SIGTERM", ["SIGTERM"]]
    assert done.returncode == 0


def test_a_second_request_interrupts_what_the_main_thread_waits_for():
    done = run("""
    signals.SAME_REQUEST_S = 0.2
    with StopSignals() as stop:
        stop.remember(told.append)
        hear(signal.SIGTERM)
        time.sleep(0.3)
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        before = time.monotonic()
        try:
            time.sleep(30)
        except KeyboardInterrupt:
            print(time.monotonic() - before < 5)
    """)
    assert done.stdout == "True\n"


def test_a_process_that_never_comes_back_from_a_call_is_ended_by_the_second_request():
    before = time.monotonic()
    done = run("""
    signals.SAME_REQUEST_S, signals.AT_ONCE_S = 0.2, 0.5
    with StopSignals() as stop:
        stop.remember(told.append)
        for seconds in (0.3, 0.8):
            threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM)).start()
        mutex = ctypes.create_string_buffer(64)
        for _ in range(2):  # the second waits for ever
            ctypes.CDLL(None).pthread_mutex_lock(mutex)
    """)
    assert done.returncode == 130
    assert time.monotonic() - before < 20


def test_what_was_ignored_under_nohup_stays_ignored():
    done = run("""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopSignals() as stop:
        hear(signal.SIGHUP)
        print(stop.heard)
    """)
    assert done.stdout == "None\n"


def test_the_end_of_a_forked_process_is_no_request_and_handlers_are_put_back():
    done = run("""
    before = [signal.getsignal(number) for number in signals.STOP_SIGNALS]
    with StopSignals() as stop:
        stop.remember(told.append)
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        child.terminate()
        child.join()
        time.sleep(0.2)
        print(json.dumps([child.exitcode, stop.heard]))
    print([signal.getsignal(number) for number in signals.STOP_SIGNALS] == before, signal.set_wakeup_fd(-1))
    """)
    assert done.stdout == f"[{-signal.SIGTERM}, null]\nTrue -1\n"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the sender of a signal cannot be known")
def test_a_worker_ends_only_at_a_signal_of_its_parent():
    done = run("""
    def work():
        signals.leave_stopping_to_parent()
        time.sleep(60)
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    time.sleep(0.3)
    for name in ("TERM", "INT", "USR1", "HUP"):
        subprocess.run(["kill", f"-{name}", str(child.pid)])  # which is not its parent
    child.join(0.5)
    print(child.is_alive())
    child.terminate()
    child.join(10)
    print(child.exitcode)
    """)
    assert done.stdout == "True\n0\n"
