"""Each process trains on pairs of its own: another parallelism is refused, FSDP within replicas is exact."""

import pytest
import torch

from tests.command import run_here, save_config, save_model, save_pairs

from .kinds import KINDS, zero
from .launch import command, launch
from .test_table import EXACT, cases, require_installed, require_same_history, weights_in
from .worker import life

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


def test_a_model_that_was_split_when_it_was_loaded(tmp_path):
    found = launch(tmp_path / "runs", {"split": {"settings": KINDS["ddp"], "distributed_config": {"tp_size": 2}}})
    for rank in found["split"]:
        assert rank["error"].startswith("ConfigError: the model was split over processes when it was loaded")
    assert not (tmp_path / "runs" / "split" / "run").exists()


@pytest.mark.parametrize(
    ("variables", "more", "line"),
    [
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_TP_SIZE": "2"}, {}, "CONFIG_TP_SIZE is 2"),
        ({}, {"parallelism_config": {"cp_size": 2}}, "parallelism_config has cp_size 2 (context parallelism)"),
        ({}, {"sp_size": 2}, "sp_size is 2; each process trains on pairs of its own"),
        ({}, {"model_init_kwargs": {"tp_plan": "auto"}}, "model_init_kwargs has tp_plan"),
        ({}, zero(1) | {"model_init_kwargs": {"distributed_config": {"ep_size": 2}}}, "has distributed_config"),
    ],
)
def test_the_command_refuses_it_before_it_loads_anything(tmp_path, monkeypatch, capsys, variables, more, line):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    model, pairs = save_model(tmp_path / "model"), save_pairs(tmp_path / "pairs.jsonl")
    names = {"model_name_or_path": str(model), "dataset_name": str(pairs)}
    recipe = save_config(tmp_path / "recipe.yaml", **names, output_dir=str(tmp_path / "run"), **more)
    outcome = run_here(capsys, "train", recipe)
    assert outcome.code == 2
    assert line in outcome.err
    assert outcome.err.strip().count("\n") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "pairs.jsonl", "recipe.yaml"]


@pytest.mark.parametrize("settings", [{"tensor_parallel": {"autotp_size": 2}}, {"sequence_parallel_size": 2}])
def test_what_deepspeed_is_asked_for(tmp_path, settings):
    require_installed("zero-1")
    deepspeed = {"deepspeed": zero(1)["deepspeed"] | settings}
    save_model(tmp_path / "base")
    data = {"dataset_name": str(save_pairs(tmp_path / "pairs.jsonl")), "output_dir": str(tmp_path / "run")}
    recipe = save_config(
        tmp_path / "r.yaml", model_name_or_path=str(tmp_path / "base"), bf16=False, **data, **deepspeed
    )
    first, second = command(tmp_path / "log", "train", recipe)
    assert (first.code, second.code) == (2, 2)
    assert "parallelism); each process trains on pairs of its own here" in first.err
    assert not (tmp_path / "run").exists()


@pytest.mark.exhaustive
def test_fsdp_within_replicas_is_one_process(tmp_path):
    sizes = {"parallelism_config": {"dp_replicate_size": 2, "dp_shard_size": 2}}
    found = launch(tmp_path / "four", {"full": cases(KINDS["fsdp-full"] | sizes)["full"]}, processes=4)
    alone = life(tmp_path / "alone" / "full", cases({})["full"], processes=1)
    for rank in found["full"]:
        assert "error" not in rank, rank
        require_same_history(rank["history"], alone["history"])
    weights, others = (weights_in(tmp_path / name / "full" / "run") for name in ("four", "alone"))
    for name, weight in weights.items():
        torch.testing.assert_close(weight, others[name], rtol=0, atol=EXACT)
