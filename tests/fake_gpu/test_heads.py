"""What heads of all kinds launch and move on a GPU: one kernel for the softmax, and products."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

pytest.importorskip("triton", reason="the head's kernel needs Triton, which is there on Linux alone")


class Limit(NamedTuple):
    """``softmax``: bytes for each entry and token; bf16 has 2, so that 6 is read, read, written. ``launches``: all."""

    chunks: int
    softmax: float
    products: float
    launches: int


LIMITS = {
    "frozen": Limit(3, 6, 2, 25),
    "evaluation": Limit(2, 2, 1, 10),
    "trained": Limit(1, 6, 3, 25),
    "trained, half kept": Limit(3, 9, 3.5, 30),  # half of it is computed twice
    "rows": Limit(2, 6, 2, 45),
    "LoRA": Limit(3, 9, 2.6, 75),  # LoRA's own products among them
}


@pytest.fixture(scope="module")
def heads():
    command = [sys.executable, "-m", "tests.fake_gpu.heads"]
    options = {"cwd": Path(__file__).parents[2], "env": os.environ | {"CUDA_VISIBLE_DEVICES": ""}}
    done = subprocess.run(command, **options, capture_output=True, text=True, timeout=120)
    if "no guard: " in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", LIMITS)
def test_a_head_moves_and_launches_no_more_than_its_limit(heads, name):
    found, limit = heads[name], LIMITS[name]
    assert found["chunks"] == limit.chunks
    assert found["bytes of the softmax"] == pytest.approx(limit.softmax, rel=1e-3)
    assert found["products"] <= limit.products + 0.01
    assert found["launches"] <= limit.launches
    assert found["waits"] == 0


@pytest.mark.parametrize("name", ["frozen", "trained", "evaluation"])
def test_nothing_but_the_kernel_and_products_reads_all_logits(heads, name):
    """A gradient of the weight that is there already is added to."""
    assert set(heads[name]["wide"]) <= {"oddsmith::target_logps", "mm", "addmm", "add_"}
