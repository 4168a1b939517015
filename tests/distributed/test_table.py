"""The table: {DDP, FSDP2, ZeRO-1, 2, 3} x {all weights, LoRA}, two processes, exact against one."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from oddsmith.model.generation import answer
from oddsmith.model.loading.models import load_model, load_tokenizer
from tests.command import save_config, save_model, save_pairs
from tests.tiny import tiny_model

from .kinds import KINDS
from .launch import command, launch
from .worker import life

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

EXACT = 1e-6  # of the largest value: float32, sums of two processes in another order
NOT_COMPARED = ("runtime", "per_second", "memory", "step", "flos")  # prompts are shared within a process


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> tuple[dict[str, dict[str, Any]], Path]:
    """What one process finds, and its folder."""
    folder = tmp_path_factory.mktemp("alone")
    return {name: life(folder / name, case, processes=1) for name, case in cases().items()}, folder


@pytest.fixture(scope="module", params=KINDS)
def kind(request, tmp_path_factory) -> tuple[str, dict[str, list[dict[str, Any]]], Path]:
    """A kind, what two processes find under it, and their folder."""
    require_installed(request.param)
    folder = tmp_path_factory.mktemp("kind") / request.param
    return request.param, launch(folder, cases(KINDS[request.param])), folder


def cases(settings: dict[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """Return the cases of a launch; the best model of ``best`` is not the last one."""
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    found: dict[str, dict[str, Any]] = {}
    for name in ("full", "lora"):
        case = {"lora": name == "lora", "settings": settings or {}}
        found |= {name: case, f"{name}-best": {**case, "settings": {**case["settings"], **best}}}
        if settings is not None:
            found[f"{name}-resumed"] = {**case, "resumes": name}
    return found | {"tied": {"settings": settings or {}, "model": {"tie_word_embeddings": True}}}


@pytest.mark.parametrize("case", cases({}))
def test_a_run_is_that_of_one_process(kind, alone, case):
    _, found, folder = kind
    expected, alone_in = alone
    for rank in found[case]:
        assert "error" not in rank, rank
        assert rank["path"] == "prefix forest"
        require_same_history(rank["history"], expected[case.removesuffix("-resumed")]["history"])
    weights, others = (weights_in(place / "run") for place in (folder / case, alone_in / case.removesuffix("-resumed")))
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        assert weight.dtype == others[name].dtype
        torch.testing.assert_close(weight, others[name], rtol=0, atol=EXACT)


def test_a_checkpoint_holds_the_weights_once(kind):
    name, _, folder = kind
    files = {path.name for path in (folder / "full" / "run" / "checkpoint-2").iterdir()}
    assert ("model.safetensors" in files) is (name not in ("fsdp-sharded", "zero-3"))
    assert ("pytorch_model_fsdp_0" in files) is (name == "fsdp-sharded")
    assert "pytorch_model_fsdp.bin" not in files


@pytest.mark.parametrize("case", ["full", "tied"])
def test_the_model_of_a_run_answers(kind, case):
    """What lies at the root of a run is read as any model is."""
    place = str(kind[2] / case / "run")
    assert len(answer(load_model(place), load_tokenizer(place), [[256, 5, 7]], max_new_tokens=3)) == 1


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights that a run has left at its root."""
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


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
