"""Threads of llama.cpp sleep soon when they wait for each other, so that another program beside them stops nothing."""

import os
import subprocess
import sys

import pytest

from oddsmith.export.gguf.llama_cpp import LOOKS_BEFORE_SLEEP

pytest.importorskip("cyllama")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the wheel for macOS has no OpenMP")
LOAD = "from oddsmith.export.gguf.llama_cpp import load_cyllama; import os; load_cyllama(); print(dict(os.environ))"


def loaded_with(**chosen: str) -> subprocess.CompletedProcess:
    """Load llama.cpp in a process, whose OpenMP then says how it waits."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_"))}
    environment = {**kept, "OMP_DISPLAY_ENV": "verbose", **chosen}
    return subprocess.run([sys.executable, "-c", LOAD], env=environment, capture_output=True, text=True, check=True)


def test_waiting_threads_sleep_soon():
    loaded = loaded_with()
    assert f"GOMP_SPINCOUNT = '{LOOKS_BEFORE_SLEEP}'" in loaded.stderr
    assert "GOMP_SPINCOUNT" not in loaded.stdout  # others that are loaded later wait as before


def test_what_the_user_has_chosen_stays():
    assert "GOMP_SPINCOUNT = '77'" in loaded_with(GOMP_SPINCOUNT="77").stderr
