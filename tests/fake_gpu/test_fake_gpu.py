"""Every kind of step, and whole trainings, on a CUDA device made of nothing (see ``tests/fake_gpu/__init__.py``)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from tests.fake_gpu.limits import FEW_STEPS, FEW_TRAININGS, STEPS, TRAININGS
from tests.fake_gpu.scenarios import CANNOT_RUN

pytestmark = pytest.mark.timeout(900)  # the first slow test waits for all of them: about 50 s of CPU
ROOT = Path(__file__).resolve().parents[2]


def some(names: Iterable[str], few: set[str]) -> list[Any]:
    """Return parameters for these names, the slow ones marked."""
    return [pytest.param(name, marks=() if name in few else pytest.mark.slow) for name in names]


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the few cases and trainings recorded."""
    return record(tmp_path_factory, "few")


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What all others recorded."""
    return record(tmp_path_factory, "others")


def record(folders: pytest.TempPathFactory, which: str) -> dict[str, Any]:
    """Run one of the two parts of the cases and trainings, in a process of its own."""
    file = folders.mktemp(which) / "recorded.json"
    command = [sys.executable, "-W", "ignore", "-m", "tests.fake_gpu.scenarios", str(file), which]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    if done.returncode == CANNOT_RUN:
        pytest.skip(f"no fake GPU: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.fixture
def step(request: pytest.FixtureRequest, name: str) -> dict[str, Any]:
    """What the step of a case recorded."""
    return _of(request.getfixturevalue("few" if name in FEW_STEPS else "others")["cases"], name)


@pytest.fixture
def training(request: pytest.FixtureRequest, name: str) -> dict[str, Any]:
    """What a training recorded."""
    return _of(request.getfixturevalue("few" if name in FEW_TRAININGS else "others")["trainings"], name)


def _of(found: dict[str, Any], name: str) -> dict[str, Any]:
    assert "error" not in found[name], found[name]["error"]
    return found[name]


def has_exact_versions() -> bool:
    """Return whether the libraries are those that the limits were found with."""
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pins = dict(re.findall(r"^([\w-]+)==([\d.]+)", constraints, re.MULTILINE))
    return all(version(name).split("+")[0] == pins[name] for name in ("torch", "transformers", "peft"))


@pytest.mark.slow
def test_every_case_has_limits(few, others):
    assert set(few["cases"]) | set(others["cases"]) == set(STEPS)
    assert set(few["trainings"]) | set(others["trainings"]) == set(TRAININGS)


def test_waits_and_copies_are_recorded(few):
    found = _of(few["recorder"], "careless")["counts"]
    waits, waiting_copies, launches = ({name for name in found if found[name][n]} for n in range(3))
    assert waits == {"synchronize", "number from the device", "positions of what is true"}
    to_and_from = {"number to the device", "tensor to the device", "tensor from the device"}
    assert waiting_copies == to_and_from | {"positions in a list"}
    assert "copy on the device" in launches


@pytest.mark.parametrize("name", some(STEPS, FEW_STEPS))
def test_every_trained_weight_gets_a_gradient_of_its_device_dtype_and_shape(step, name):
    assert step["faults"] == []


@pytest.mark.parametrize("name", some(STEPS, FEW_STEPS))
def test_a_step_waits_for_the_device_no_more_than_its_limit(step, name):
    assert len(step["waits"]) <= STEPS[name].waits, step["waits"]
    assert step["waiting copies"] == []


@pytest.mark.parametrize("name", some(STEPS, FEW_STEPS))
def test_each_layer_calls_its_attention_kernels_once(step, name):
    assert step["attention"] == STEPS[name].kernels(step["layers"])


@pytest.mark.parametrize("name", some(STEPS, FEW_STEPS))
def test_a_layer_launches_and_moves_no_more_than_its_limit(step, name):
    limit = STEPS[name]
    assert step["launches a layer"] <= limit.launches
    assert step["passes a layer"] <= limit.passes + (0 if has_exact_versions() else 5)
    assert step["launches beside the layers"] <= limit.beside


def test_the_roofline_predicts_faster_steps_on_faster_cards_and_counts_the_operations(few):
    found = _of(few["roofline"], "8b-qlora")
    times_s = [found["device_s"][card] for card in ("H100", "A100", "RTX 4090", "RTX 3090")]
    assert times_s == sorted(times_s)
    assert 0 < times_s[0] < times_s[-1] / 3
    # LoRA's own products come on top; the first layer needs no gradient of its input.
    assert found["operations"] == pytest.approx(found["needed"], rel=0.05)
    assert "| 8b-qlora | RTX 3090 |" in found["report"]


@pytest.mark.parametrize("name", some(TRAININGS, FEW_TRAININGS))
def test_a_training_waits_for_the_device_and_copies_no_more_than_its_limit(training, name):
    recorded, limit = training["first"]["step"], TRAININGS[name]
    assert recorded["micro-batches"] == limit.micro_batches
    assert len(recorded["waits"]) <= limit.waits, recorded["waits"]
    assert len(recorded["waiting copies"]) <= limit.waiting_copies * limit.micro_batches, recorded["waiting copies"]
    assert len(recorded["copies"]) <= limit.copies * limit.micro_batches, recorded["copies"]


@pytest.mark.parametrize("name", some(TRAININGS, FEW_TRAININGS))
def test_an_evaluation_waits_no_more_than_its_limit(training, name):
    evaluation, limit = training["first"]["evaluation"], TRAININGS[name]
    assert evaluation["micro-batches"] > 0
    assert len(evaluation["waits"]) <= limit.evaluation_waits * evaluation["micro-batches"], evaluation["waits"]


@pytest.mark.parametrize("name", some(TRAININGS, FEW_TRAININGS))
def test_a_resumed_training_goes_on_as_before(training, name):
    first, resumed = training["first"], training["resumed"]
    assert resumed["steps"] == first["steps"] == 3
    assert resumed["path"] == first["path"] == TRAININGS[name].path
    assert first["faults"] == resumed["faults"] == []
    for what in ("micro-batches", "attention", "copies"):
        assert resumed["step"][what] == first["step"][what]
    # It is this trainer's first step: whether all weights get a gradient is looked at once.
    assert [wait for wait in resumed["step"]["waits"] if "trainable.py" not in wait] == first["step"]["waits"]


@pytest.mark.parametrize("name", some(TRAININGS, FEW_TRAININGS))
def test_a_checkpoint_of_a_gpu_is_complete(training, name):
    assert {"optimizer.safetensors", "manifest.json"} <= set(training["saved"])
