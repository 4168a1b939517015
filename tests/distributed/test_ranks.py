"""Processes that wait for one another: how long, for whom, and what happens when one of them never comes."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import TCPStore

from oddsmith.system.run_folder import read_events
from tests.command import environment, save_config, save_model, save_pairs
from tests.forked import fork_all, free_port, rank_environment, run_module

from .kinds import KINDS

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

HANG = {"ddp_timeout": 9}  # a process hangs after 3 s


def run(folder: Path, case: dict[str, Any], *, first: int = 0, processes: int = 2) -> tuple[list[int], list[str]]:
    """Train in some processes; return the exit code and the messages of each rank. ``first`` ends before the others."""
    port = free_port()
    ranks = sorted(range(processes), key=lambda rank: (rank != first, rank))
    environments = [environment() | rank_environment(rank, processes, port) for rank in ranks]
    module = partial(run_module, "tests.distributed.slow_rank", str(folder), json.dumps(case))
    codes = fork_all(module, environments, folder / "log", timeout_s=90)
    errors = [(folder / f"log-{number}.err").read_text(encoding="utf-8") for number in range(processes)]
    order = [ranks.index(rank) for rank in range(processes)]
    return [codes[number] for number in order], [errors[number] for number in order]


def test_one_process_speaks(tmp_path):
    """Each of them finds the same; of torch's C++ warnings the test leaves out those that the command switches off."""
    save_model(tmp_path / "base")
    save_pairs(tmp_path / "pairs.jsonl", 24)
    data = {"model_name_or_path": str(tmp_path / "base"), "dataset_name": str(tmp_path / "pairs.jsonl")}
    settings = {**data, "output_dir": str(tmp_path / "run"), "max_length": 16, "max_prompt_length": 8, "use_cpu": True}
    recipe = save_config(tmp_path / "recipe.yaml", **settings, max_steps=3, logging_steps=1, bf16=False)
    environments = [environment() | rank_environment(rank, 2, port) for port in [free_port()] for rank in range(2)]
    module = partial(run_module, "oddsmith.cli.main", "train", str(recipe))
    codes = fork_all(module, environments, tmp_path / "log", timeout_s=60)
    first, second = ((tmp_path / f"log-{rank}.err").read_text(encoding="utf-8") for rank in range(2))
    assert codes == [0, 0], first + second
    assert "act: too few steps" in first
    assert "step 3/3" in first
    assert [line for line in second.splitlines() if line and "reducer.cpp" not in line] == []
    assert (tmp_path / "log-1.out").read_text(encoding="utf-8") == ""


def test_an_error_of_all_processes_is_said_once(tmp_path):
    """They ask one another at the store of torchrun, here one of the test's own."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    save_model(tmp_path / "base")
    launched = {"TORCHELASTIC_RUN_ID": "one", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    words = ["train", "--model-name-or-path", str(tmp_path / "base"), "--dataset-name", str(tmp_path / "none.jsonl")]
    module = partial(run_module, "oddsmith.cli.main", *words, "--use-cpu", "--output-dir", str(tmp_path / "run"))
    environments = [environment() | rank_environment(rank, 2, store.port) | launched for rank in (1, 0)]
    codes = fork_all(module, environments, tmp_path / "log", timeout_s=60)
    second, first = (path.read_text(encoding="utf-8") for path in sorted(tmp_path.glob("log-*.err")))
    assert codes[0] == 2
    assert "none.jsonl" in first
    assert second == ""


def test_a_process_that_sleeps_in_a_step_is_named(tmp_path):
    case = {"rank": 1, "moments": {"on_step_begin": 2}, "seconds": 80, "settings": HANG}
    codes, errors = run(tmp_path, case)
    assert codes[0] == 1
    (line,) = [line for line in errors[0].splitlines() if "hangs" in line]
    assert line.startswith("for 3 s 1 of 2 processes hangs and the others wait: rank 1 (process ")
    assert " at step 3, loading the batches: in _sleep (slow_rank.py:" in line
    assert f"the run ends, and can go on from its last checkpoint; stacks of all: {tmp_path}/run/_stacks" in line
    assert "hangs" not in errors[1]
    assert "_sleep" in (tmp_path / "run/_stacks/rank-1.txt").read_text(encoding="utf-8")
    assert "end_micro_batch" in (tmp_path / "run/_stacks/rank-0.txt").read_text(encoding="utf-8")
    assert (tmp_path / "run/checkpoint-2/manifest.json").is_file()


@pytest.mark.exhaustive
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_was_stopped_is_named(tmp_path, rank):
    """The first one serves the store, so that the other one cannot ask it."""
    case = {"rank": rank, "moments": {"on_step_begin": 2}, "seconds": 0, "settings": HANG}
    codes, errors = run(tmp_path, case, first=1 - rank)
    assert codes[1 - rank] == 1
    said = errors[1 - rank]
    assert f"rank {rank} " in said
    assert ("stopped by a signal" if rank else "rank 0 of 2 does not answer and the others wait") in said
    assert said.count("the others wait") == 1


@pytest.mark.exhaustive
def test_slow_evaluations_saves_and_first_steps_are_no_hanging(tmp_path):
    moments = {"on_epoch_begin": 0, "on_evaluate": 2, "on_save": 2}
    codes, errors = run(tmp_path, {"rank": 1, "moments": moments, "seconds": 4, "settings": HANG})
    assert codes == [0, 0], errors
    assert not (tmp_path / "run/_stacks").exists()
    shares = [event["waiting_share"] for event in read_events(tmp_path / "run") if event["event"] == "ranks"]
    assert len(shares) == 4
    assert all(0 <= share <= 1 for line in shares for share in line)
    assert all(min(line) == 0 for line in shares)


@pytest.mark.parametrize("kind", ["ddp", pytest.param("fsdp-full", marks=pytest.mark.exhaustive)])
def test_who_waits_is_logged(tmp_path, kind):
    """Rank 1 is late in each step, by 0.4 s of some 0.5 s."""
    settings = {**KINDS[kind], "eval_strategy": "no", "save_strategy": "no"}
    case = {"rank": 1, "moments": {"on_step_begin": 3}, "seconds": 0.5, "settings": settings}
    codes, errors = run(tmp_path, case)
    assert codes == [0, 0], errors
    events = read_events(tmp_path / "run")
    shares = [event["waiting_share"] for event in events if event["event"] == "ranks"]
    assert shares[-1][1] == 0
    assert 0.5 < shares[-1][0] < 1
    logs = [event for event in events if event["event"] == "log" and "loss" in event]
    assert logs[-1]["waiting_share"] == pytest.approx(shares[-1][0] / 2, abs=1e-3)
    assert logs[-1]["tokens_per_second_per_gpu"] == pytest.approx(logs[-1]["tokens_per_second"] / 2)
    assert "mfu" not in logs[-1]
