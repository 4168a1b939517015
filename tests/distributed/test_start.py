"""How a run starts in several processes, on CPUs as they are: one run or an error in all of them, and restarts."""

import json
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.command import environment, with_tests
from tests.forked import fork_all, free_port, rank_environment, run_module

from . import starts

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

LIMIT_S = 120.0
LAUNCHERS = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    "mpirun": (
        *("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
        *("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ),
    "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE"),
}


def start(folder: Path, cases: list[dict], launcher: str = "torchrun", **variables: str) -> list[list[dict]]:
    """Live cases in two processes; return for each case what became of each process."""
    folder.mkdir()
    (folder / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
    port, environments = free_port(), []
    for rank in range(2):
        given = rank_environment(rank, 2, port)
        names = dict(zip(LAUNCHERS["torchrun"], LAUNCHERS[launcher], strict=True))
        environments.append(environment() | {names.get(name, name): value for name, value in given.items()} | variables)
    target = partial(run_module, "tests.distributed.starts", str(folder))
    codes = fork_all(target, environments, folder / "log", timeout_s=LIMIT_S)
    assert codes == [0, 0], "".join(path.read_text(encoding="utf-8")[-3000:] for path in folder.glob("log-*.err"))
    found = [json.loads((folder / f"rank-{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]
    return [list(of_case) for of_case in zip(*found, strict=True)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """Return a run of one process."""
    run = tmp_path_factory.mktemp("alone") / "run"
    starts.train(str(run), 1)
    return run


def require_same_weights(run: Path, other: Path) -> None:
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (run, other))
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "launcher", ["mpirun", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("torchrun", "srun"))]
)
def test_processes_on_cpus_are_one_run(tmp_path, alone, launcher):
    """accelerate would make a run of each, as no ``use_cpu`` says what they train on."""
    (both,) = start(tmp_path / launcher, [{}], launcher)
    assert both == [{"world": 2, "rank": 0}, {"world": 2, "rank": 1}]
    require_same_weights(tmp_path / launcher / "0" / "all" / "run", alone)


def test_what_takes_accelerators_is_refused_on_cpus(tmp_path):
    zero = {"zero_optimization": {"stage": 2}, "train_micro_batch_size_per_gpu": "auto"}
    asked = {
        "fsdp": {"settings": {"fsdp": True, "fsdp_config": {"version": 2}}},
        "ACCELERATE_USE_FSDP": {"environment": {"ACCELERATE_USE_FSDP": "true"}},
        "fsdp ": {"settings": {"fsdp": True, "use_cpu": True}},
        "ACCELERATE_USE_DEEPSPEED": {"environment": {"ACCELERATE_USE_DEEPSPEED": "true"}},
        "deepspeed": {"settings": {"deepspeed": zero}},
    }
    for name, both in zip(asked, start(tmp_path / "runs", [*asked.values()]), strict=True):
        for process in both:
            assert f"ConfigError: {name.strip()} is on, which takes an accelerator for each process" in process["error"]


def test_machines_with_disks_of_their_own(tmp_path):
    """Two processes that are each the first of its machine."""
    each = {"save_on_each_node": True}
    cases = [
        {"apart": True},
        {"settings": each},
        {"apart": True, "settings": each, "pairs": [24, 23]},
        {"apart": True, "settings": {**each, "save_strategy": "no"}, "leaves_no_model": True},
    ]
    nodes = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    unseen, shared, other_pairs, fine = start(tmp_path / "runs", cases, **nodes)
    for process in unseen:
        assert "ConfigError: output_dir run: the folder that process 0 on " in process["error"]
        assert " writes to is not seen by process 1 on " in process["error"]
        assert "give a folder that all machines share, or set save_on_each_node" in process["error"]
    for process in shared:
        assert "save_on_each_node is on, but processes 0, 1 (" in process["error"]
        assert "would write to the same folder" in process["error"]
    for process in other_pairs:
        assert "ConfigError: train: process 1 on " in process["error"]
        assert "(23 pairs and 24 pairs): give all processes the same files and settings" in process["error"]
    assert [process.get("world") for process in fine] == [2, 2], fine
    assert not [*tmp_path.rglob("_probe-*")]


@pytest.mark.parametrize(
    ("wanted", "settings"),
    [(True, {}), pytest.param(None, {"resume_from_checkpoint": True}, marks=pytest.mark.exhaustive)],
)
def test_restarted_processes_go_on_from_the_last_checkpoint(tmp_path, alone, wanted, settings):
    """The variables are those of ``torchrun --max-restarts 1``, which the next test takes."""
    words = [str(tmp_path / "run"), json.dumps(wanted), json.dumps(settings)]
    target, codes = partial(run_module, "tests.distributed.restarted", *words), []
    for restart in ("0", "1"):
        variables = {"TORCHELASTIC_RESTART_COUNT": restart, "TORCHELASTIC_MAX_RESTARTS": "1"}
        port = free_port()
        environments = [environment() | variables | rank_environment(rank, 2, port) for rank in range(2)]
        codes.append(fork_all(target, environments, tmp_path / f"log-{restart}", timeout_s=LIMIT_S))
    log = "".join(path.read_text(encoding="utf-8")[-2000:] for path in sorted(tmp_path.glob("log-*.err")))
    assert codes[0][1] == -signal.SIGKILL, log
    assert codes[1] == [0, 0], log
    require_continued(tmp_path, alone)


@pytest.mark.exhaustive
def test_torchrun_restarts_a_run_that_goes_on_from_its_last_checkpoint(tmp_path, alone):
    torchrun = "torch.distributed.run --standalone --nproc-per-node 2 --max-restarts 1 -m tests.distributed.restarted"
    words = [sys.executable, "-m", *torchrun.split(), str(tmp_path / "run"), "true", "{}"]
    done = subprocess.run(words, env=with_tests(environment()), capture_output=True, text=True, timeout=LIMIT_S * 2)
    assert done.returncode == 0, done.stderr[-3000:]
    require_continued(tmp_path, alone)


def require_continued(folder: Path, alone: Path) -> None:
    """Require that both processes began after the first step, and ended as if nothing had happened."""
    assert [(folder / f"began-{rank}").read_text(encoding="utf-8") for rank in range(2)] == ["1", "1"]
    require_same_weights(folder / "run", alone)
    assert len([*(folder / "run").glob("checkpoint-*")]) == 3
