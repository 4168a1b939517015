"""TRL's quick-start and TRL's script, as their users run them, on a tiny model in a folder; a recipe in Python."""

import json
import os
import sys
from pathlib import Path

import pytest
import yaml

from oddsmith import trainer_from_recipe
from oddsmith.errors import ConfigError
from oddsmith.system.run_folder import read_events
from tests.command import SETTINGS, run_apart, run_here, save_config, save_model, save_pairs

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def model_and_data(tmp_path_factory):
    """A model folder and a data folder as a hub dataset of implicit-prompt conversations lies on disk."""
    folder = tmp_path_factory.mktemp("inputs")
    save_model(folder / "model")
    (folder / "data").mkdir()
    for split, count in (("train", 12), ("test", 4)):
        with open(folder / "data" / f"{split}.jsonl", "w", encoding="utf-8") as file:
            for i in range(count):
                ask = {"role": "user", "content": f"What is {i} plus {i}?"}
                answers = (f"It is {2 * i}.", f"Who knows what {i} plus {i} may be, after all?")
                chosen, rejected = ([ask, {"role": "assistant", "content": text}] for text in answers)
                file.write(json.dumps({"chosen": chosen, "rejected": rejected, "score_chosen": 5.0}) + "\n")
    return folder / "model", folder / "data"


def run(command, cwd):
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = run_apart(*command, start=[sys.executable], cwd=cwd, env=environment)
    assert done.code == 0, done.err[-3000:]


def test_the_quick_start_runs_with_the_import_changed(model_and_data, tmp_path):
    run([EXAMPLES / "quick_start.py", *model_and_data], tmp_path)
    events = [json.loads(line) for line in (tmp_path / "Qwen2-0.5B-ORPO" / "events.jsonl").read_text().splitlines()]
    assert events[0]["data"]["train"]["kept"] == 12
    assert events[-1]["event"] == "end"
    assert events[-1]["step"] == 6  # three epochs of two steps


@pytest.mark.slow
def test_trl_s_script_runs_with_trl_s_command_line(model_and_data, tmp_path):
    model, data = model_and_data
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", EXAMPLES / "scripts" / "orpo.py"]
    options = ["--model_name_or_path", model, "--dataset_name", data, "--num_train_epochs", "1"]
    more = ["--logging_steps", "25", "--output_dir", tmp_path / "out", "--eval_strategy", "epoch"]
    adapter = ["--logging_first_step", "--use_peft", "--lora_r", "4", "--learning_rate", "1e-3"]
    run([*launch, *options, *more, *adapter], tmp_path)
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
    logged = [json.loads(line) for line in (tmp_path / "out" / "events.jsonl").read_text().splitlines()]
    assert any("rewards/margins" in event for event in logged)
    assert any("eval_rewards/accuracies" in event for event in logged)


def test_a_recipe_trains_in_python_as_by_the_command(tmp_path, capsys):
    recipe = save_config(
        tmp_path / "recipe.yaml",
        model_name_or_path=str(save_model(tmp_path / "model")),
        dataset_name=str(save_pairs(tmp_path / "pairs.jsonl")),
        **SETTINGS,
        max_steps=2,
        test_split_size=0.25,
        report_to="none",
    )
    done = run_here(capsys, "train", recipe, "--output-dir", tmp_path / "command")
    assert done.code == 0, done.err
    trainer = trainer_from_recipe(str(recipe), "--output-dir", str(tmp_path / "python"))
    trainer.train()
    trainer.save_model()
    ours, expected = (tmp_path / name for name in ("python", "command"))
    assert (ours / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()
    settings, others = (yaml.safe_load((run / "run.yaml").read_text(encoding="utf-8")) for run in (ours, expected))
    assert {name for name in settings if settings[name] != others[name]} == {"output_dir"}
    kinds = [[event["event"] for event in read_events(run)] for run in (ours, expected)]
    assert kinds[0] == kinds[1]


def test_a_flag_of_the_command_is_no_setting_of_a_recipe(tmp_path):
    with pytest.raises(ConfigError, match="--resume"):
        trainer_from_recipe("--beta", "0.2", "--resume")
