"""Of two processes that train together one runs out of memory: both halve their token budget, and nothing else changes.

The error is simulated within a layer, the processes and what they say to each other are real.
"""

import os
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, GPT2Config

from oddsmith.errors import OutOfMemoryError
from oddsmith.model.logprobs.token_budget import MIN_TOKENS
from tests.command import run_two_processes
from tests.short_memory import Memory
from tests.tiny import ragged_pairs
from tests.tiny_runs import make_trainer


def train(folder: Path, memory: Memory, max_tokens, **more):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=264, n_embd=16, n_layer=2, n_head=2, n_positions=1100, initializer_range=0.2)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64)
    rows = ragged_pairs(30, seed=4)
    settings = {"per_device_train_batch_size": 8, "max_steps": 3, "learning_rate": 1e-3, "logging_steps": 1} | more
    trainer = make_trainer(folder, model, Dataset.from_list(rows), max_tokens_per_microbatch=max_tokens, **settings)
    trainer.path  # noqa: B018  chosen before memory is short
    memory.watch(trainer, trainer.model.transformer.h[0])
    error = None
    try:
        trainer.train()
    except (RuntimeError, OutOfMemoryError) as raised:
        error = f"{type(raised).__name__}: {raised}"
    logs = [
        {name: line[name] for name in ("loss", "grad_norm")} for line in trainer.state.log_history if "loss" in line
    ]
    weights = {name: weight.detach() for name, weight in trainer.model.named_parameters()}
    found = {"budget": trainer.path.max_tokens, "struck": memory.struck, "rows": len(memory.rows)}
    return {"weights": weights, "logs": logs, "error": error} | found


FEW = ("undisturbed", "in the last micro-batch", "in the last backward pass", "single pairs do not fit")  # not slow
LAST = 9  # rows of a process in an undisturbed run
# name -> the memory of process 1, and the budget at first
CASES = {
    "undisturbed": (Memory(), 400),
    "in the first micro-batch of the first step": (Memory(nth=1), 400),
    "in a later step": (Memory(nth=8), 400),
    "in a backward pass": (Memory(nth=2, place="backward"), 400),
    "in the last micro-batch": (Memory(nth=LAST), 400),
    "in the last backward pass": (Memory(nth=LAST, place="backward"), 400),
    "until it fits": (Memory(tokens=190), 700),
    "rehearsed": (Memory(tokens=300), "auto"),
    "single pairs do not fit": (Memory(tokens=20), 700),
}


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """What both processes found in the few cases."""
    return found_by_two(tmp_path_factory.mktemp("few"), *FEW)


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory):
    """What both processes found in all cases."""
    return found_by_two(tmp_path_factory.mktemp("all"), *CASES)


def found_by_two(folder: Path, *names: str) -> list[dict]:
    run_two_processes(__name__, folder, *names)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


FINISHED = [name for name in CASES if name not in ("undisturbed", "single pairs do not fit")]


@pytest.mark.parametrize("name", [name for name in FINISHED if name in FEW])
def test_both_processes_train_on_as_if_nothing_had_happened(few, name):
    require_as_undisturbed(few, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FINISHED if name not in FEW])
def test_both_processes_train_as_if_nothing_had_happened(of_ranks, name):
    require_as_undisturbed(of_ranks, name)


def require_as_undisturbed(of_ranks: list[dict], name: str) -> None:
    for results in of_ranks:
        got, expected = results[name], results["undisturbed"]
        assert got["error"] is None
        for weight in expected["weights"]:
            assert torch.allclose(got["weights"][weight], expected["weights"][weight], rtol=1e-9, atol=1e-12), weight
        for line, wanted in zip(got["logs"], expected["logs"], strict=True):
            assert line == pytest.approx(wanted, rel=1e-5)  # rounded when logged
    assert of_ranks[0][name]["budget"] == of_ranks[1][name]["budget"]


def test_memory_was_short_once(few):
    assert few[1]["undisturbed"]["rows"] == LAST
    for name in FEW[1:3]:
        assert few[1][name]["struck"] == 1
        assert few[1][name]["budget"] <= 200


@pytest.mark.slow
def test_memory_was_short_as_often_as_it_had_to_be(of_ranks):
    struck = {name: results["struck"] for name, results in of_ranks[1].items()}
    assert of_ranks[1]["undisturbed"]["rows"] == LAST
    once = [name for name in FINISHED if name.startswith("in ")]
    assert [struck[name] for name in once] == [1] * 5
    assert struck["until it fits"] > 1
    assert struck["rehearsed"] == 2  # 1,024 and 512 tokens, and nothing once steps are made
    assert all(of_ranks[1][name]["budget"] <= 200 for name in once)
    assert of_ranks[1]["until it fits"]["budget"] <= 190
    assert of_ranks[1]["rehearsed"]["budget"] == MIN_TOKENS


def test_where_nothing_can_be_halved_both_processes_end_with_the_reason(few):
    first, second = (results["single pairs do not fit"]["error"] for results in few)
    assert first.startswith("OutOfMemoryError: the device of another process is out of memory; lower per_device")
    assert second == "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."


def main(folder: str, *names: str) -> None:
    """One of two processes."""
    rank = int(os.environ["RANK"])
    results = {}
    for name in names:
        memory, max_tokens = CASES[name]
        results[name] = train(Path(folder) / name, memory, max_tokens, ddp_backend="gloo")
    torch.save(results, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
