"""``oddsmith plan`` on a tiny model whose folder holds no weights: nothing is loaded, and nothing is started."""

import json
import re
from pathlib import Path

import pytest

from tests.command import SETTINGS, Outcome, run_here, save_config, save_model, save_pairs


@pytest.fixture(scope="module")
def workshop(tmp_path_factory) -> Path:
    """A folder with a configuration, pairs, and a model without its weights."""
    folder = tmp_path_factory.mktemp("plan")
    save_model(folder / "model", num_hidden_layers=6)
    (folder / "model" / "model.safetensors").unlink()
    save_pairs(folder / "pairs.jsonl")
    paths = {"model_name_or_path": str(folder / "model"), "dataset_name": str(folder / "pairs.jsonl")}
    save_config(folder / "config.yaml", **paths, **SETTINGS, output_dir=str(folder / "run"))
    return folder


@pytest.fixture
def plan(workshop, capsys):
    """Run ``oddsmith plan`` with the configuration."""

    def run(*words: object) -> Outcome:
        return run_here(capsys, "plan", workshop / "config.yaml", *words)

    return run


def test_a_plan_for_several_gpus_is_a_table_and_a_verdict(plan, workshop):
    done = plan("--gpu", "h100", "--gpus", 4, "--nodes", 2)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert max(map(len, lines)) <= 80
    rows = [line[2:22].strip() for line in lines if line.endswith(tuple("0123456789")) and line[:2] in ("> ", "  ")]
    kinds = ("DDP", "FSDP2", "ZeRO-2", "ZeRO-3")
    named = [f"{training}, {kind}" for training in ("all weights", "LoRA") for kind in kinds]
    assert [row for row in rows if row in named] == named
    assert any(line.startswith("> all weights, DDP") for line in lines)
    assert "> This recipe fits: all weights, DDP takes" in done.out
    assert "predicted from the rates of data" in " ".join(done.out.split())
    assert "times the mean tokens" in done.out
    assert re.search(
        r"A step takes [\d.e-]+ to [\d.e-]+ s, an epoch [\d.e-]+ to [\d.e-]+ s:", " ".join(done.out.split())
    )
    assert not (workshop / "run").exists()


def test_json_has_the_same_figures(plan):
    of_gpus = ("--tf32", "true", "--parallelism-config", '{"dp_replicate_size": 2}')  # that this machine need not have
    done = plan("--gpu", "24GB", "--gpus", 2, "--json", "--use-peft", *of_gpus)
    document = json.loads(done.out)
    assert (document["command"], document["predicted"]) == ("plan", True)
    recipe = next(choice for choice in document["choices"] if choice["is_recipe"])
    assert (recipe["training"], recipe["sharing"], recipe["step_s"]) == ("LoRA", "DDP", None)
    parts = [value for name, value in recipe["bytes"].items() if name != "sum"]
    assert recipe["bytes"]["sum"] == pytest.approx(sum(parts), abs=10)
    assert document["pairs"] == {"rows": 12, "tokenized": 12, "kept": 12}


@pytest.mark.slow
def test_a_recipe_is_shared_as_it_says(plan, workshop):
    zero = {"zero_optimization": {"stage": 3}}
    (workshop / "zero.json").write_text(json.dumps(zero), encoding="utf-8")
    words = ("--gpu", "a100", "--gpus", 2, "--json")
    for given in ("--deepspeed", workshop / "zero.json"), ("--deepspeed", json.dumps(zero)):
        recipe = next(one for one in json.loads(plan(*given, *words).out)["choices"] if one["is_recipe"])
        assert recipe["sharing"] == "ZeRO-3"
        assert recipe["bytes"]["exchange"] > 2 * 4 * 5 * 10**8  # DeepSpeed's own size of a bucket, twice
    recipe = next(one for one in json.loads(plan("--fsdp", "true", *words).out)["choices"] if one["is_recipe"])
    assert recipe["sharing"] == "FSDP2"


@pytest.mark.slow
def test_what_does_not_fit_is_said(plan):
    large = plan("--gpu", "1GB", "--gpus", 2, "--deepspeed", json.dumps({"zero_optimization": {"stage": 2}}))
    assert "> This recipe does not fit: all weights, ZeRO-2 takes" in " ".join(large.out.split())
    assert "What fits: all weights, DDP" in " ".join(large.out.split())


def test_without_a_gpu_this_machine_is_planned_for(plan):
    document = json.loads(plan("--json").out)
    assert [choice["sharing"] for choice in document["choices"]] == ["one process"] * 3
    recipe = document["choices"][0]
    assert recipe["is_recipe"]
    assert recipe["step_s"]["from"] > 0
    assert recipe["bytes"]["process"] > 10**8


@pytest.mark.slow
def test_deepspeed_without_zero_on_one_gpu_is_one_process(plan):
    done = plan("--gpu", "h100", "--json", "--deepspeed", json.dumps({"zero_optimization": {"stage": 0}}))
    recipe = next(choice for choice in json.loads(done.out)["choices"] if choice["is_recipe"])
    assert recipe["sharing"] == "one process"


@pytest.mark.slow
def test_what_a_recipe_asks_of_gpus_is_not_asked_of_this_machine(plan):
    hybrid = ("--fsdp", "true", "--parallelism-config", json.dumps({"dp_replicate_size": 2, "dp_shard_size": 4}))
    document = json.loads(plan("--gpu", "h100", "--gpus", 8, "--json", "--tf32", "true", *hybrid).out)
    recipe = next(choice for choice in document["choices"] if choice["is_recipe"])
    over_all = next(choice for choice in document["choices"] if choice["sharing"] == "ZeRO-3")
    assert recipe["sharing"] == "FSDP2"
    assert recipe["bytes"]["weights"] == pytest.approx(2 * over_all["bytes"]["weights"], rel=0.01)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--gpu", "h100", "--fsdp", "true", "--parallelism-config", '{"dp_replicate_size": 2, "dp_shard_size": 4}'),
            "parallelism_config is for 8 processes, and the plan for 1; give --gpus and --nodes",
        ),
        (
            ("--gpu", "h100", "--gpus", "2", "--parallelism-config", '{"tp_size": 2}'),
            "parallelism_config has tp_size 2 (tensor parallelism)",
        ),
        (("--gpu", "h999"), "--gpu is 'h999'; expected its memory, such as 24GB, or one of H100"),
        (("--gpus", "0"), "--gpus is 0; expected 1 or more"),
        (("--gpus", "100"), "--gpus is 100; expected at most 64"),
        (("--nodes", "many"), "--nodes is 'many'"),
        (("--gpu", "h100", "--deepspeed", "nowhere.json"), "deepspeed is 'nowhere.json': it cannot be read as JSON"),
    ],
)
def test_bad_input_is_one_line(plan, words, message):
    done = plan(*words)
    assert done.code == 2
    assert message in done.err
    assert len(done.err.strip().splitlines()) == 1
