"""A recipe of another trainer trains here: converted, and given to ``oddsmith train`` as it is."""

import json

from tests.command import run_here, save_model, save_pairs, save_rows
from tests.tiny import ragged_pairs

AXOLOTL = """\
base_model: model
rl: orpo
orpo_alpha: 0.5
datasets:
  - {path: pairs.jsonl, ds_type: json}
val_set_size: 4
adapter: lora
lora_r: 4
lora_alpha: 8
lora_target_linear: true
sequence_len: 64
micro_batch_size: 2
gradient_accumulation_steps: 1
num_epochs: 1
learning_rate: 1e-3
warmup_steps: 0
bf16: false
evals_per_epoch: 2
save_strategy: "no"
logging_steps: 1
output_dir: direct
"""
LLAMA_FACTORY = """\
model_name_or_path: model
stage: dpo
pref_loss: orpo
finetuning_type: full
dataset: texts, pairs
dataset_dir: lists
cutoff_len: 512
max_samples: 6
per_device_train_batch_size: 2
output_dir: out
"""


def losses(run):
    events = [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    return [event["loss"] for event in events if "loss" in event]


def test_a_converted_recipe_trains_as_the_file_itself_does(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "model")
    save_pairs(tmp_path / "pairs.jsonl")
    (tmp_path / "axolotl.yaml").write_text(AXOLOTL, encoding="utf-8")
    recipe = run_here(capsys, "convert", "axolotl.yaml")
    assert recipe.code == 0
    (tmp_path / "recipe.yaml").write_text(recipe.out, encoding="utf-8")
    converted = run_here(capsys, "train", "recipe.yaml", "--use-cpu", "--output-dir", "converted")
    assert converted.code == 0, converted.err
    assert "axolotl" not in converted.err
    direct = run_here(capsys, "train", "axolotl.yaml", "--use-cpu")
    assert direct.code == 0, direct.err
    assert "warning: axolotl.yaml is a recipe of axolotl and was translated" in direct.err
    assert "warning: sequence_len: " in direct.err
    assert len(losses(tmp_path / "direct")) == 4
    assert losses(tmp_path / "direct") == losses(tmp_path / "converted")
    assert "beta: 0.5  # axolotl.yaml:3" in (tmp_path / "direct/run.yaml").read_text(encoding="utf-8")


def test_datasets_of_a_list_are_found_and_read_by_their_columns(tmp_path, monkeypatch, capsys):
    """Alpaca rows under other names, and standard pairs: the first six of each."""
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "model")
    (tmp_path / "lists").mkdir()
    rows = [
        {"task": row["prompt"], "more": "", "good": row["chosen"], "bad": row["rejected"]} for row in ragged_pairs(9)
    ]
    save_rows(tmp_path / "lists/texts.jsonl", rows)
    save_rows(tmp_path / "lists/pairs.jsonl", [{**row, "instruction": row["prompt"]} for row in ragged_pairs(9)])
    columns = {"prompt": "task", "query": "more", "chosen": "good", "rejected": "bad"}
    listed = {
        "texts": {"file_name": "texts.jsonl", "ranking": True, "columns": columns},
        "pairs": {"file_name": "pairs.jsonl", "ranking": True, "columns": {"prompt": "instruction"}},
    }
    (tmp_path / "lists/dataset_info.json").write_text(json.dumps(listed), encoding="utf-8")
    (tmp_path / "factory.yaml").write_text(LLAMA_FACTORY, encoding="utf-8")
    outcome = run_here(capsys, "train", "factory.yaml", "--dry-run", "--use-cpu", "--json")
    assert outcome.code == 0, outcome.err
    train = json.loads(outcome.out)["data"]["train"]
    assert (train["rows"], train["dropped"]) == (12, {})
    assert train["forms"] == {"conversations": 6, "plain text in the chat template": 6}
