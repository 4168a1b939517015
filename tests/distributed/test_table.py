"""The table: {DDP, FSDP2, ZeRO-1, 2, 3} x {all weights, LoRA}, two processes, exact against one."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.command import save_config, save_model, save_pairs
from tests.tiny import tiny_model

from .kinds import KINDS
from .launch import command, launch
from .worker import life

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

EXACT = 1e-6  # of the largest value: float32, sums of two processes in another order
NOT_COMPARED = ("runtime", "per_second", "memory", "step", "flos")  # prompts are shared within a process


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, dict[str, Any]]:
    """What one process finds."""
    folder = tmp_path_factory.mktemp("alone")
    return {name: life(folder / name, {"lora": name == "lora"}, processes=1) for name in ("full", "lora")}


@pytest.fixture(scope="module", params=KINDS)
def kind(request, tmp_path_factory) -> tuple[str, dict[str, list[dict[str, Any]]], Path]:
    """A kind, what two processes find under it, and their folder."""
    require_installed(request.param)
    folder = tmp_path_factory.mktemp("kind") / request.param
    cases = {name: {"lora": name == "lora", "settings": KINDS[request.param]} for name in ("full", "lora")}
    return request.param, launch(folder, cases), folder


@pytest.mark.parametrize("trained", ["full", "lora"])
def test_every_logged_number_is_that_of_one_process(kind, alone, trained):
    _, found, _ = kind
    for rank in found[trained]:
        assert "error" not in rank, rank
        assert rank["path"] == "prefix forest"
        require_same_history(rank["history"], alone[trained]["history"])


def require_installed(kind: str) -> None:
    """Skip a test whose kind of sharding is not there: DeepSpeed is for Linux alone."""
    if kind.startswith("zero") and find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")


def require_same_history(ours: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Compare log lines, but for speeds."""
    assert [line["step"] for line in ours] == [line["step"] for line in expected]
    for line, other in zip(ours, expected, strict=True):
        assert line.keys() == other.keys()
        for name, value in line.items():
            if not any(word in name for word in NOT_COMPARED):
                assert value == pytest.approx(other[name], rel=EXACT * 10, abs=EXACT), (line["step"], name)


def test_the_command_says_how_large_a_partitioned_model_is(tmp_path):
    """transformers partitions it while it is loaded, so that it looks empty in each process."""
    require_installed("zero-3")
    save_model(tmp_path / "base")
    save_pairs(tmp_path / "pairs.jsonl", 16)
    settings = {**KINDS["zero-3"], "max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 0.01}
    recipe = save_config(
        tmp_path / "recipe.yaml",
        model_name_or_path=str(tmp_path / "base"),
        dataset_name=str(tmp_path / "pairs.jsonl"),
        output_dir=str(tmp_path / "run"),
        max_length=64,
        bf16=False,
        report_to="none",
        save_strategy="no",
        **settings,
    )
    first, second = command(tmp_path / "log", "train", recipe)
    assert (first.code, second.code) == (0, 0), first.err
    count = f"{tiny_model().num_parameters() / 1e3:.4g} k"
    assert f"{count} parameters, {count} trainable (100%)" in first.err
    assert "prefix forest: packed and padded batches agree" in first.err
