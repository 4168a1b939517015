"""No run goes on from checkpoints of another trainer, which stay as they are; their weights start a new run."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from trl.experimental.orpo import ORPOConfig as TheirConfig
from trl.experimental.orpo import ORPOTrainer as TheirTrainer

from oddsmith.checkpoint.store import checkpoints
from oddsmith.cli.commands.train.command import OPTIONS
from oddsmith.cli.commands.train.weights import take_weights
from oddsmith.cli.parsing.resolve import resolve
from oddsmith.cli.parsing.schema import fields_for_run
from oddsmith.errors import CheckpointError, ConfigError
from oddsmith.model.loading.models import load_model, load_tokenizer
from tests.command import SETTINGS, run_here, save_config, save_model, save_pairs
from tests.tiny import CHATML, ragged_pairs, tiny_tokenizer
from tests.tiny_runs import PLAIN, make_trainer

TEMPLATE = CHATML.replace("assistant", "helper")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A base model, and two runs of TRL's trainer on it: of all weights, and of an adapter."""
    folder = tmp_path_factory.mktemp("theirs")
    base, tokenizer = save_model(folder / "base"), tiny_tokenizer(TEMPLATE)
    save_pairs(folder / "pairs.jsonl")
    plain = {"max_length": 64, "learning_rate": 1e-2, "max_steps": 3, "save_strategy": "steps", "save_steps": 1}
    for name, adapter in (
        ("whole", None),
        ("lora", LoraConfig(r=2, task_type="CAUSAL_LM", target_modules="all-linear")),
    ):
        trainer = TheirTrainer(
            load_model(str(base)),
            TheirConfig(output_dir=str(folder / name), **{**PLAIN, **plain}),
            train_dataset=Dataset.from_list(ragged_pairs(6)),
            processing_class=tokenizer,
            peft_config=adapter,
        )
        trainer.train()
    config = save_config(
        folder / "config.yaml", **SETTINGS, dataset_name=str(folder / "pairs.jsonl"), max_steps=1, logging_steps=1,
        save_strategy="no", model_name_or_path=str(base),
    )  # fmt: skip
    return folder, config


def said_of(folder: Path) -> str:
    found = (
        "was written by another trainer (it has trainer_state.json and no manifest.json), so no run goes on from here"
    )
    start = f'--from-weights {folder} (in Python: ORPOTrainer("{folder}"'
    return f"{folder}: {found}; start a new one from its weights: {start}"


def files_of(folder: Path) -> set[Path]:
    return {file for file in folder.rglob("*") if not file.name.startswith("_lock")}


def test_the_command_goes_on_from_none(place, capsys):
    folder, config = place
    run, last = folder / "whole", folder / "whole" / "checkpoint-3"
    before = files_of(run)
    for words in (["--resume", last], ["--resume", run], ["--resume"], ["--resume-from-checkpoint", last]):
        outcome = run_here(capsys, "train", config, "--output-dir", run, *words)
        assert (outcome.code, said_of(last) in outcome.err) == (2, True), outcome.err
    outcome = run_here(capsys, "train", config, "--output-dir", run)
    assert "holds a run of another trainer; choose another folder, and to start from the weights" in outcome.err
    assert f"give --from-weights {last}" in outcome.err
    assert files_of(run) == before


@pytest.mark.parametrize("wanted", [True, "auto", "checkpoint-3"])
def test_a_script_goes_on_from_none(place, wanted):
    run = place[0] / "lora"
    before = files_of(run)
    trainer = make_trainer(run, max_steps=1)
    wanted = str(run / wanted) if wanted == "checkpoint-3" else wanted
    with pytest.raises(CheckpointError) as caught:
        trainer.train(resume_from_checkpoint=wanted)
    assert str(caught.value).startswith(said_of(run / "checkpoint-3"))
    assert files_of(run) == before


def test_a_checkpoint_of_ours_counts_beside_theirs(place, tmp_path):
    shutil.copytree(place[0] / "whole" / "checkpoint-3", tmp_path / "checkpoint-9")
    make_trainer(tmp_path, max_steps=2, save_strategy="steps", save_steps=1).train()
    trainer = make_trainer(tmp_path, max_steps=3)
    trainer.train(resume_from_checkpoint="auto")
    assert trainer.state.global_step == 3


def logged(run: Path, kind: str) -> dict:
    events = map(json.loads, (run / "events.jsonl").read_text().splitlines())
    return next(event for event in events if event["event"] == kind)


def test_a_new_run_starts_from_the_weights_of_all(place, tmp_path, capsys):
    folder, config = place
    last = folder / "whole" / "checkpoint-3"
    outcome = run_here(capsys, "train", config, "--from-weights", folder / "whole", "--output-dir", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    assert f"starting anew from the weights of {last}" in outcome.err
    assert f'model_name_or_path: "{last}"  # --from-weights' in (tmp_path / "run" / "run.yaml").read_text()
    assert load_tokenizer(str(tmp_path / "run")).chat_template == TEMPLATE
    script = make_trainer(
        tmp_path / "script",
        str(last),
        tokenizer=load_tokenizer(str(last)),
        max_steps=1,
        learning_rate=1e-3,
        max_length=64,
    )
    script.train()
    ours, by_script = load_file(tmp_path / "run" / "model.safetensors"), script.model.state_dict()
    assert all(torch.equal(weight, by_script[name]) for name, weight in ours.items())
    assert logged(tmp_path / "run", "log")["loss"] == script.state.log_history[0]["loss"]


def test_a_new_run_starts_from_the_weights_of_an_adapter(place, tmp_path, capsys):
    folder, config = place
    last = folder / "lora" / "checkpoint-3"
    words = ["--from-weights", last, "--use-peft", "--lora-r", "4", "--learning-rate", "1e-12"]
    outcome = run_here(capsys, "train", config, *words, "--output-dir", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    assert f"{last} is an adapter, which is trained further as it is: lora_r stays 2" in outcome.err
    assert "LoRA of rank 2" in outcome.err
    before, after = (load_file(one / "adapter_model.safetensors") for one in (last, tmp_path / "run"))
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    assert json.loads((tmp_path / "run" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        folder / "base"
    )
    again = run_here(capsys, "train", tmp_path / "run" / "run.yaml", "--output-dir", tmp_path / "again")
    assert again.code == 0, again.err
    assert logged(tmp_path / "again", "log")["loss"] == logged(tmp_path / "run", "log")["loss"]


def taken(*words: object) -> str:
    resolved = resolve(list(map(str, words)), fields_for_run(), OPTIONS)
    take_weights(resolved)
    return resolved.get("model_name_or_path")


def test_the_revision_of_a_file_is_its_model_s_and_one_that_was_typed_that_of_the_weights(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("model_name_or_path: a/b\nmodel_revision: v1\n")
    for typed, expected in ([], "main"), (["--model-revision", "v2"], "v2"):
        resolved = resolve([str(config), "--from-weights", "c/d", *typed], fields_for_run(), OPTIONS)
        take_weights(resolved)
        assert resolved.get("model_name_or_path") == "c/d"
        assert resolved.get("model_revision") == expected


def test_weights_of_a_run_of_ours_are_those_at_its_root_or_of_its_newest_whole_checkpoint(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=3, save_strategy="steps", save_steps=1, save_total_limit=3)
    trainer.train()
    assert taken("--from-weights", tmp_path) == str(tmp_path / "checkpoint-3")
    weights = tmp_path / "checkpoint-3" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    assert taken("--from-weights", tmp_path) == str(tmp_path / "checkpoint-2")
    with pytest.raises(CheckpointError, match=r"checkpoint-3: model.safetensors has"):
        taken("--from-weights", tmp_path / "checkpoint-3")
    for folder in checkpoints(tmp_path):
        (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match="none of its 3 checkpoints holds a model that is whole"):
        taken("--from-weights", tmp_path)
    trainer.save_model()
    assert taken("--from-weights", tmp_path) == str(tmp_path)


def test_the_file_may_name_another_model_and_run_but_no_flag_may(place, tmp_path):
    folder, _ = place
    config = save_config(
        tmp_path / "c.yaml", model_name_or_path="other", resume_from_checkpoint="x", model_revision="r"
    )
    assert taken(config, "--from-weights", folder / "base") == str(folder / "base")
    for words in (["--resume"], ["--resume-from-checkpoint", "x"], ["--model-name-or-path", "x"]):
        with pytest.raises(ConfigError, match=f"--from-weights starts a new run, and {words[0]} .*; give one of them"):
            taken("--from-weights", folder / "base", *words)


def test_a_run_that_is_done_and_kept_no_checkpoint_does_not_begin_again(tmp_path):
    make_trainer(tmp_path, max_steps=1).train()
    with pytest.raises(CheckpointError, match="is a run that is done and kept no checkpoint; start a new one from its"):
        make_trainer(tmp_path, max_steps=2).train(resume_from_checkpoint="auto")
