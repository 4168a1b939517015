"""The table: {DDP, FSDP2, ZeRO-1, 2, 3} x {all weights, LoRA}, two processes, exact against one."""

from collections.abc import Callable
from functools import cache
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
NOT_COMPARED = (
    "runtime",
    "per_second",
    "waiting",
    "memory",
    "step",
    "flos",
    "preparation",
)  # prompts are shared within a process


class Lives:
    """What the processes of a kind find in the cases, and their folders.

    Those of continuous integration are lived together, the others too, each when one of them is first asked for.

    Args:
        kind: A key of ``KINDS``.
        folder: Where.
    """

    def __init__(self, kind: str, folder: Path):
        self.kind = kind
        self._folder = folder
        self._found: dict[str, list[dict[str, Any]]] = {}

    def of(self, case: str) -> list[dict[str, Any]]:
        """Return what each process found in a case."""
        if case not in self._found:
            own = cases(KINDS[self.kind])
            group = {name: own[name] for name in own if (name in few(self.kind)) is (case in few(self.kind))}
            self._found |= launch(self.run(case).parents[1], group)
        return self._found[case]

    def run(self, case: str) -> Path:
        """Return the run folder of a case."""
        return self._folder / ("few" if case in few(self.kind) else "others") / case / "run"


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Callable[[str], tuple[dict[str, Any], Path]]:
    """Return what one process finds in a case, and its run folder."""
    folder = tmp_path_factory.mktemp("alone")

    @cache
    def of(case: str) -> tuple[dict[str, Any], Path]:
        return life(folder / case, cases({})[case], processes=1), folder / case / "run"

    return of


@pytest.fixture(scope="module")
def lives(tmp_path_factory) -> Callable[[str], Lives]:
    """Return what two processes find under a kind."""
    folder = tmp_path_factory.mktemp("kinds")

    @cache
    def under(kind: str) -> Lives:
        require_installed(kind)
        return Lives(kind, folder / kind)

    return under


def cases(settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the cases of a kind with these settings; the best model of ``best`` is not the last one."""
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    full = {"settings": settings}
    found: dict[str, dict[str, Any]] = {}
    for name, case in (("full", full), ("lora", {**full, "lora": True})):
        found |= {name: case, f"{name}-best": {**case, "settings": {**settings, **best}}}
        found |= {f"{name}-resumed": {**case, "resumes": name}, f"{name}-evaluated": {**case, "only_evaluates": True}}
        found |= {f"{name}-after-evaluate": {**case, "evaluates_first": True}}
        found |= {f"{name}-again": {**case, "trains_twice": True}}
    return found | {"tied": {**full, "model": {"tie_word_embeddings": True}}}


def few(kind: str) -> set[str]:
    """Return the cases of a kind for continuous integration."""
    also = {"fsdp-full": ["tied", "full-after-evaluate"]}
    also |= {name: ["lora", "lora-resumed"] for name in ("fsdp-sharded", "zero-3")}
    return {"full", "full-resumed", "full-evaluated", *also.get(kind, ())}


def cells(wanted: Callable[[str], bool]) -> pytest.MarkDecorator:
    """Return the kinds and cases of a table, those beyond ``few`` marked as exhaustive."""
    return pytest.mark.parametrize(
        ("kind", "case"),
        [
            pytest.param(kind, case, marks=[] if case in few(kind) else [pytest.mark.exhaustive])
            for kind in KINDS
            for case in cases({})
            if wanted(case)
        ],
    )


@cells(lambda case: not case.endswith("-evaluated"))
def test_a_run_is_that_of_one_process(lives, alone, kind, case):
    require_same_run(lives(kind).of(case), lives(kind).run(case), *alone(case.removesuffix("-resumed")))


@cells(lambda case: case.endswith("-evaluated"))
def test_a_model_is_evaluated_without_a_training(lives, alone, kind, case):
    expected = alone(case)[0]["metrics"]
    for rank in lives(kind).of(case):
        assert "error" not in rank, rank
        require_same_metrics(rank["metrics"], expected)


def test_an_optimizer_of_the_weights_before_an_evaluation_trains_nothing(tmp_path):
    case = {"settings": KINDS["fsdp-full"], "own_optimizer": True, "evaluates_first": True}
    for rank in launch(tmp_path / "runs", {"both": case})["both"]:
        assert "the optimizer that was passed holds the weights from before evaluate()" in rank["error"]


@pytest.mark.parametrize("kind", ["fsdp-full", pytest.param("fsdp-sharded", marks=pytest.mark.exhaustive)])
def test_layers_are_computed_again_within_their_shards(tmp_path, alone, kind):
    """FSDP2's ``activation_checkpointing`` wraps layers before they are sharded, also where an evaluation does that."""
    settings = {**KINDS[kind], "fsdp_config": {**KINDS[kind]["fsdp_config"], "activation_checkpointing": True}}
    names = ("full", "full-after-evaluate", "full-again")
    found = launch(tmp_path / "runs", {name: cases(settings)[name] for name in names})
    for name, ranks in found.items():
        require_same_run(ranks, tmp_path / "runs" / name / "run", *alone(name))
        assert {rank["computed_again"] for rank in ranks} == {tiny_model().config.num_hidden_layers}, name


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_holds_the_weights_once(lives, kind):
    lives(kind).of("full")
    files = {path.name for path in (lives(kind).run("full") / "checkpoint-2").iterdir()}
    assert ("model.safetensors" in files) is (kind not in ("fsdp-sharded", "zero-3"))
    assert ("pytorch_model_fsdp_0" in files) is (kind == "fsdp-sharded")
    assert "pytorch_model_fsdp.bin" not in files


@cells(lambda case: case in ("full", "tied"))
def test_the_model_of_a_run_answers(lives, kind, case):
    """What lies at the root of a run is read as any model is."""
    lives(kind).of(case)
    place = str(lives(kind).run(case))
    assert len(answer(load_model(place), load_tokenizer(place), [[256, 5, 7]], max_new_tokens=3)) == 1


def require_same_run(ranks: list[dict[str, Any]], run: Path, expected: dict[str, Any], alone_in: Path) -> None:
    """Compare what each process found, and the weights of their run, with those of one process."""
    for rank in ranks:
        assert "error" not in rank, rank
        assert rank["path"] == "prefix forest"
        require_same_history(rank["history"], expected["history"])
    weights, others = weights_in(run), weights_in(alone_in)
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        assert weight.dtype == others[name].dtype
        torch.testing.assert_close(weight, others[name], rtol=0, atol=EXACT)


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
        require_same_metrics(line, other)


def require_same_metrics(ours: dict[str, Any], expected: dict[str, Any]) -> None:
    """Compare the values of a log line or of an evaluation, but for speeds."""
    ours, expected = (
        {name: value for name, value in metrics.items() if not any(word in name for word in NOT_COMPARED)}
        for metrics in (ours, expected)
    )
    assert ours.keys() == expected.keys()
    for name, value in ours.items():
        assert value == pytest.approx(expected[name], rel=EXACT, abs=EXACT), name


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
    assert "packed without padding, and what answers share is computed once" in first.err


@pytest.mark.parametrize("kind", ["ddp", "fsdp-full", "zero-1"])
def test_the_command_evaluates_in_several_processes(tmp_path, kind):
    require_installed(kind)
    save_model(tmp_path / "base")
    save_pairs(tmp_path / "pairs.jsonl", 9)
    data = {"dataset_name": str(tmp_path / "pairs.jsonl"), "max_length": 64, "bf16": False}
    recipe = save_config(tmp_path / "recipe.yaml", **data, **KINDS[kind])
    first, second = command(tmp_path / "log", "eval", tmp_path / "base", "--config", recipe)
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert second.out == ""
    plain = save_config(tmp_path / "plain.yaml", **data, use_cpu=True)
    (alone,) = command(tmp_path / "alone", "eval", tmp_path / "base", "--config", plain, processes=1)
    assert alone.out.startswith("pairs")
    assert first.out == alone.out
