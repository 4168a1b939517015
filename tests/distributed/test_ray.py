"""Ray Train around a recipe: two workers, one of which is killed; the run goes on from what Ray has stored."""

import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from oddsmith.checkpoint.manifest import MANIFEST_FILE, verify
from tests.command import environment, run_apart, save_config, save_model, save_pairs, with_tests

pytestmark = [
    pytest.mark.slow,
    pytest.mark.distributed,
    pytest.mark.exhaustive,
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed; make test-ray installs it"),
]

STEPS, SAVED_EVERY = 40, 10
LIMIT_S = 200


def recipe_in(folder: Path) -> Path:
    """Write a recipe of a tiny model that saves every ten steps."""
    return save_config(
        folder / "recipe.yaml",
        model_name_or_path=str(save_model(folder / "model")),
        dataset_name=str(save_pairs(folder / "pairs.jsonl")),
        max_steps=STEPS,
        save_steps=SAVED_EVERY,
        logging_steps=SAVED_EVERY,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        max_length=64,
        bf16=False,
        use_cpu=True,
        report_to="none",
    )


def workers_of(driver: subprocess.Popen) -> list[psutil.Process]:
    """Return the processes of Ray's workers that train, as Ray names them."""
    found = psutil.Process(driver.pid).children(recursive=True)
    return [process for process in found if any("RayTrainWorker" in word for word in process.cmdline())]


@pytest.mark.timeout(2 * LIMIT_S + 100)
def test_a_run_goes_on_when_a_worker_is_killed(tmp_path):
    recipe, storage = recipe_in(tmp_path), tmp_path / "storage"
    words = [str(recipe), "--workers", "2", "--storage", str(storage), "--output-dir", str(tmp_path / "run")]
    log = tmp_path / "log"
    with log.open("w") as file:
        driver = subprocess.Popen(
            [sys.executable, "-m", "tests.distributed.ray_driver", *words],
            cwd=tmp_path,
            env=with_tests(environment())
            | {"RAY_USAGE_STATS_ENABLED": "0", "HOME": str(tmp_path)},  # it leaves a token
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + LIMIT_S
        while not [*storage.glob(f"oddsmith/checkpoint_*/{MANIFEST_FILE}")]:
            assert driver.poll() is None, log.read_text(encoding="utf-8")[-5000:]
            assert time.monotonic() < deadline, log.read_text(encoding="utf-8")[-5000:]
            time.sleep(0.05)
        workers = workers_of(driver)
        assert len(workers) == 2
        workers[1].send_signal(signal.SIGKILL)
        assert driver.wait(LIMIT_S) == 0, log.read_text(encoding="utf-8")[-5000:]
    finally:
        if driver.poll() is None:
            for process in [*psutil.Process(driver.pid).children(recursive=True), psutil.Process(driver.pid)]:
                process.kill()
            driver.wait()

    starts = [
        line for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines() if '"event": "start"' in line
    ]
    assert len(starts) == 2, "it was killed after its end"
    stored = sorted(file.parent for file in storage.glob(f"oddsmith/checkpoint_*/{MANIFEST_FILE}"))  # named by the time
    assert verify(stored[-1]).step == STEPS

    words = ["train", recipe, "--output-dir", tmp_path / "undisturbed", "--num-processes", "2"]
    undisturbed = run_apart(*words)
    assert undisturbed.code == 0, undisturbed.err
    ours, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("run", "undisturbed"))
    assert ours.keys() == expected.keys()
    for name, weight in ours.items():
        assert torch.equal(weight, expected[name]), name
