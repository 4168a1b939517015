"""Recipes of other trainers become ours, with all that they mean, or are refused in one line."""

import json
import math
import re
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from oddsmith.cli.parsing.config_file import Setting, read_config
from oddsmith.cli.parsing.foreign_files import checked, read_foreign
from oddsmith.cli.parsing.resolve import resolve
from oddsmith.cli.parsing.schema import load_fields
from oddsmith.config.foreign import translate
from oddsmith.errors import ConfigError
from tests.command import run_here
from tests.foreign_recipes import (
    AXOLOTL,
    AXOLOTL_FULL,
    DATASET_INFO,
    EXAMPLES,
    LLAMA_FACTORY,
    MIXTURE,
    SWIFT,
    UNSLOTH,
)

FIELDS = load_fields()
ODD = [True, -1, 0, 1.5, math.inf, math.nan, 10**30, "", "x", "1e999", "a:b#c", [], [1], [{}], {}, {"a": [None]}]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/dataset_info.json").write_text(json.dumps(DATASET_INFO), encoding="utf-8")
    for example in EXAMPLES:
        (tmp_path / example.file).write_text(example.text, encoding="utf-8")
    return tmp_path


def names(document, part):
    return {one["name"] for one in document[part]}


def settings_of(path):
    return {name: setting.value for name, setting in resolve([str(path)], FIELDS).settings.items()}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.file)
def test_each_trainers_example_becomes_exactly_these_settings(capsys, folder, example):
    """As our own parser reads them from what is printed."""
    outcome = run_here(capsys, "convert", example.file)
    (folder / "ours.yaml").write_text(outcome.out, encoding="utf-8")
    assert settings_of("ours.yaml") == example.settings
    assert outcome.code == 0
    document = json.loads(run_here(capsys, "convert", example.file, "--json").out)
    assert document["settings"] == example.settings
    assert names(document, "changed") == example.changed
    assert names(document, "same") == example.same
    assert names(document, "undecided") == set()
    for part in ("changed", "same"):
        assert all(f"  {one['name']}" in outcome.err and one["text"] in outcome.err for one in document[part])


@pytest.mark.parametrize("example", [AXOLOTL, AXOLOTL_FULL, LLAMA_FACTORY, MIXTURE], ids=lambda one: one.file)
def test_train_takes_the_file_itself_and_says_what_is_different(example):
    resolved = resolve([example.file, "--beta", "0.7"], FIELDS)
    assert {name: setting.value for name, setting in resolved.settings.items()} == example.settings | {"beta": 0.7}
    assert resolved.lines[0].startswith(f"{example.file} is a recipe of ")
    assert "oddsmith convert" in resolved.lines[0]
    assert {line.partition(":")[0] for line in resolved.lines[1:]} == example.changed | example.same
    assert all(setting.where for setting in resolved.settings.values())


def test_a_line_says_where_it_comes_from_and_what_is_a_default(capsys):
    lines = run_here(capsys, "convert", AXOLOTL.file).out.splitlines()
    assert "beta: 0.2  # orpo_alpha" in lines
    assert "lr_scheduler_type: cosine  # axolotl's default" in lines
    assert any(line.startswith("max_length: 2048  # sequence_len; axolotl drops pairs") for line in lines)
    assert "learning_rate: 0.0002" in lines


OTHER_METHODS = {
    "a.yaml": ("base_model: m\nrl: dpo\n", "a.yaml:2: rl is dpo: not ORPO"),
    "b.yaml": ("base_model: m\nsequence_len: 512\nmicro_batch_size: 1\n", "b.yaml: rl is missing"),
    "c.yaml": ("model_name_or_path: m\nstage: sft\n", "c.yaml:2: stage is sft: not ORPO"),
    "d.yaml": ("stage: dpo\npref_loss: simpo\n", "d.yaml:2: pref_loss is simpo: not ORPO"),
    "e.yaml": ("stage: dpo\npref_beta: 0.1\n", "e.yaml: pref_loss is missing"),
    "f.yaml": ("rlhf_type: kto\n", "f.yaml:1: rlhf_type is kto: not ORPO"),
    "g.sh": ("swift rlhf --rlhf_type dpo --model m\n", "g.sh:1: rlhf_type is dpo: not ORPO"),
    "h.py": ("from trl import DPOConfig\nDPOConfig(beta=0.1)\n", "h.py: makes a DPOConfig; expected"),
}


@pytest.mark.parametrize("file", OTHER_METHODS)
def test_another_method_is_refused_in_one_line(capsys, folder, file):
    text, message = OTHER_METHODS[file]
    (folder / file).write_text(text, encoding="utf-8")
    outcome = run_here(capsys, "convert", file)
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert message in outcome.err
    if file.endswith("yaml"):
        with pytest.raises(ConfigError, match=message.partition(":2")[0]):
            resolve([file], FIELDS)


DAMAGED = {
    "two.yaml": ("rl: orpo\nstage: dpo\n", "holds settings of axolotl (rl) and LLaMA-Factory (stage)"),
    "ours.yaml": ("beta: 0.1\nprefix_forest: true\n", "is a recipe of Oddsmith already (prefix_forest)"),
    "nobody.yaml": ("colour: red\n", "is no recipe that is recognised (unknown: colour)"),
    "broken.yaml": ("rl: [orpo\n", "broken.yaml:2: not valid YAML"),
    "broken.json": ('{"rl": ', "broken.json: not valid JSON"),
    "list.json": ("[1]", "list.json: holds no mapping of settings"),
    "no_data.yaml": ("base_model: m\nrl: orpo\nlearning_rate: 1\n", "no_data.yaml: datasets is missing"),
    "no_rank.yaml": (
        "base_model: m\nrl: orpo\nlearning_rate: 1\ndatasets: [{path: p}]\nadapter: lora\n",
        "no_rank.yaml: lora_r is missing",
    ),
    "number.yaml": ("base_model: m\nrl: orpo\ndatasets: [{path: p}]\nval_set_size: x\n", "number.yaml:4: val_set_size"),
    "kind.yaml": (
        "base_model: m\nrl: orpo\ndatasets: [{path: p}]\nlearning_rate: [1]\n",
        "kind.yaml:4: learning_rate is the list [1]",
    ),
    "half.yaml": (
        "base_model: m\nrl: orpo\ndatasets: [{path: p}]\nlearning_rate: 1\nmicro_batch_size: 1.5\n",
        "half.yaml:5: micro_batch_size is 1.5; expected a whole number",
    ),
    "sft_data.yaml": ("stage: dpo\npref_loss: orpo\nmodel_name_or_path: m\ndataset: instructions\ndataset_dir: lists\n",
        "sft_data.yaml: lists/dataset_info.json: instructions has no `ranking: true`"),
    "none.sh": ("echo hello\n", "none.sh: holds no training command"),
    "twice.sh": ("swift rlhf --rlhf_type orpo\nswift rlhf --rlhf_type orpo\n", "twice.sh: holds 2 training commands"),
    "unset.sh": ('swift rlhf --rlhf_type orpo --model "$MODEL"\n', "$MODEL is a variable that the script does not set"),
    "file.sh": ("accelerate launch scripts/orpo.py recipe.yaml\n", "reads recipe.yaml; convert that file"),
    "twice.py": ("ORPOConfig(beta=1)\nORPOConfig(beta=2)\n", "twice.py:2: makes an ORPOConfig again, first in line 1"),
    "stars.py": ("ORPOConfig(**settings)\n", "stars.py:1: unpacks a mapping into ORPOConfig"),
    "broken.py": ("ORPOConfig(\n", "broken.py:1: is no Python that can be read"),
    "none.ipynb": ("{}", "none.ipynb: is no notebook"),
}  # fmt: skip


@pytest.mark.parametrize("file", DAMAGED)
def test_a_damaged_or_ambiguous_file_is_refused_in_one_line(capsys, folder, file):
    text, message = DAMAGED[file]
    (folder / file).write_text(text, encoding="utf-8")
    outcome = run_here(capsys, "convert", file)
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert message in outcome.err


@pytest.mark.parametrize(
    "ours", ["dataset_name: org/pairs", "use_peft: true", "nll_on: response", "model_name_or_path: m"]
)
@pytest.mark.parametrize(
    ("theirs", "meant"),
    [
        ({"num_epochs": 1, "micro_batch_size": 2}, ["num_train_epochs", "per_device_train_batch_size"]),
        ({"sequence_len": 512, "val_set_size": 0.1}, ["max_length", "test_split_size"]),
        ({"cutoff_len": 512, "pref_beta": 0.1}, ["max_length", "beta"]),
    ],
)
def test_slips_in_a_recipe_of_ours_are_named_as_such(folder, ours, theirs, meant):
    (folder / "slips.yaml").write_text(f"{ours}\n{yaml.safe_dump(theirs)}", encoding="utf-8")
    with pytest.raises(ConfigError, match="unknown settings") as caught:
        resolve(["slips.yaml"], FIELDS)
    assert all(f"did you mean {name}?" in str(caught.value) for name in meant)


def test_marks_beside_a_list_of_datasets_are_still_those_of_llama_factory(folder):
    text = "model_name_or_path: m\ndataset: alpaca\nfinetuning_type: lora\ncutoff_len: 512\n"
    (folder / "sft.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"^sft\.yaml: stage is missing"):
        resolve(["sft.yaml"], FIELDS)


UNDECIDED = {  # added to a recipe, and the name that is reported
    "plugins: [a.B]": (AXOLOTL, "plugins"),
    "loraplus_lr_ratio: 16": (AXOLOTL, "loraplus_lr_ratio"),
    "some_new_setting: 0": (AXOLOTL, "some_new_setting"),
    "lr_scheduler: rex": (AXOLOTL, "lr_scheduler"),
    "shuffle_merged_datasets: false": (AXOLOTL, "shuffle_merged_datasets"),
    "rpo_alpha: 1.0": (AXOLOTL_FULL, "rpo_alpha"),
    "test_datasets: [{path: a}, {path: b}]": (AXOLOTL_FULL, "test_datasets"),
    "test_datasets: [{path: a, name: b}]": (AXOLOTL_FULL, "test_datasets"),
    "test_datasets: [{path: a, field_prompt: task}]": (AXOLOTL_FULL, "test_datasets"),
    "test_datasets: [{path: a, shards: 2}]": (AXOLOTL_FULL, "test_datasets"),
    "eval_dataset: alpaca": (LLAMA_FACTORY, "eval_dataset"),
    "eval_dataset: tagged": (LLAMA_FACTORY, "eval_dataset"),
    "eval_dataset: unlisted": (LLAMA_FACTORY, "eval_dataset"),
    "adapter_name_or_path: saves/sft": (LLAMA_FACTORY, "adapter_name_or_path"),
    "use_galore: true": (LLAMA_FACTORY, "use_galore"),
    "quantization_bit: 3": (LLAMA_FACTORY, "quantization_bit"),
}


@pytest.mark.parametrize("line", UNDECIDED)
def test_what_would_train_differently_is_named_and_refused_by_train(capsys, folder, line):
    example, name = UNDECIDED[line]
    (folder / "more.yaml").write_text(f"{example.text}{line}\n", encoding="utf-8")
    outcome = run_here(capsys, "convert", "more.yaml", "--json")
    assert outcome.code == 3
    document = json.loads(outcome.out)
    assert names(document, "undecided") == {name}
    assert f"# NOT TRANSLATED, decide: {name}: " in document["recipe"]
    with pytest.raises(ConfigError, match=f"{name} has no counterpart"):
        resolve(["more.yaml"], FIELDS)


HELD_OUT = {  # added to a recipe: what is evaluated on
    "test_datasets: [{path: a, split: 'test[:50]', field_prompt: question}]": (AXOLOTL_FULL, "a", "test[:50]"),
    "test_datasets: [{path: a.jsonl}]": (AXOLOTL_FULL, "a.jsonl", "train"),
    "eval_dataset: shared": (LLAMA_FACTORY, "org/pairs", "train[:1000]"),
    "val_dataset: data.jsonl#200": (SWIFT, "data.jsonl", "train[:200]"),
    "val_dataset: [a.jsonl, org/b]": (SWIFT, "a.jsonl,org/b", "train"),
    "val_dataset: org/b:part": (SWIFT, None, None),
    "val_dataset: [a.jsonl#200, org/b]": (SWIFT, None, None),
    "test_datasets: [{path: a, name: b}]": (AXOLOTL_FULL, None, None),
    "eval_dataset: alpaca": (LLAMA_FACTORY, None, None),
}


@pytest.mark.parametrize("line", HELD_OUT)
def test_held_out_data_keep_split_rows_subset_and_columns_or_are_to_be_decided(folder, line):
    example, name, split = HELD_OUT[line]
    trainer, given = read_foreign(example.file)
    (folder / "line.yaml").write_text(line, encoding="utf-8")
    recipe = translate(trainer, {**given, **read_config("line.yaml")}, folder)
    found = {name: setting.value for name, setting in checked(recipe, FIELDS).items()}
    assert (found.get("eval_dataset_name"), found.get("dataset_test_split")) == (name, split)
    undecided = {one.name for one in recipe.missing if one.decides}
    assert undecided == (set() if name else {line.partition(":")[0]})


def test_the_subset_of_the_training_data_is_one_to_evaluate_on(folder):
    (folder / "swift.yaml").write_text("rlhf_type: orpo\ndataset: a/b:c\nval_dataset: a/b:c#9\n", encoding="utf-8")
    found = settings_of("swift.yaml")
    expected = {"dataset_config": "c", "eval_dataset_name": "a/b", "dataset_test_split": "train[:9]"}
    assert found.items() >= expected.items()


PEFT_IN_4_BITS = {"lora_r": 8, "lora_alpha": 8, "lora_dropout": 0.0, "bnb_4bit_quant_type": "fp4"}


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        (
            "LoraConfig(init_lora_weights=True)\nBitsAndBytesConfig(load_in_4bit=True)\n",
            {**PEFT_IN_4_BITS, "use_bnb_nested_quant": False},
        ),
        (
            "LoraConfig(16, lora_dropout=0.1)\nBitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type='nf4')\n",
            {"lora_r": 16, "lora_alpha": 8, "lora_dropout": 0.1, "bnb_4bit_quant_type": "nf4"}
            | {"use_bnb_nested_quant": False},
        ),
        ("BitsAndBytesConfig(load_in_8bit=True)\n", {}),
        (
            "AutoModelForCausalLM.from_pretrained('m', load_in_4bit=True)\n",
            {"bnb_4bit_quant_type": "fp4", "use_bnb_nested_quant": False},
        ),
        (
            "import unsloth\nFastLanguageModel.get_peft_model(model, init_lora_weights=True)\n",
            {"lora_r": 16, "lora_alpha": 16, "lora_dropout": 0.0},
        ),
    ],
)
def test_a_script_gets_the_defaults_of_the_libraries_that_it_calls(capsys, folder, calls, expected):
    (folder / "more.py").write_text(f"{calls}ORPOConfig(beta=0.1)\n", encoding="utf-8")
    settings = json.loads(run_here(capsys, "convert", "more.py", "--json").out)["settings"]
    kinds = [*PEFT_IN_4_BITS, "use_bnb_nested_quant", "init_lora_weights"]
    assert {name: settings[name] for name in kinds if name in settings} == expected


def test_trl_quantises_no_constants_and_leaves_the_layers_to_peft(capsys, folder):
    (folder / "trl.yaml").write_text("dataset_name: a\nload_in_4bit: true\nuse_peft: true\n", encoding="utf-8")
    document = json.loads(run_here(capsys, "convert", "trl.yaml", "--json").out)
    assert document["settings"]["use_bnb_nested_quant"] is False
    assert "lora_target_modules" in names(document, "changed")
    text = "dataset_name: a\nuse_bnb_nested_quant: true\nload_in_4bit: true\nlora_target_modules: [q_proj]\n"
    (folder / "trl.yaml").write_text(f"{text}use_peft: true\n", encoding="utf-8")
    document = json.loads(run_here(capsys, "convert", "trl.yaml", "--json").out)
    assert document["settings"]["use_bnb_nested_quant"] is True
    assert "lora_target_modules" not in names(document, "changed")


def test_a_kind_of_finetuning_and_names_in_messages_have_no_counterpart(capsys, folder):
    text = LLAMA_FACTORY.text.replace("finetuning_type: lora", "finetuning_type: freeze")
    (folder / "more.yaml").write_text(text.replace("alpaca, shared", "tagged"), encoding="utf-8")
    document = json.loads(run_here(capsys, "convert", "more.yaml", "--json").out)
    assert names(document, "undecided") == {"finetuning_type", "dataset"}
    assert "use_peft" not in document["settings"]


def test_rows_that_a_script_makes_and_values_that_it_computes_are_to_be_decided(capsys, folder):
    text = UNSLOTH.text.replace("beta = 0.1", "beta = pick()").replace("from trl", "dataset = dataset.map(f)\nfrom trl")
    (folder / "more.py").write_text(text, encoding="utf-8")
    outcome = run_here(capsys, "convert", "more.py", "--json")
    assert outcome.code == 3
    assert names(json.loads(outcome.out), "undecided") == {"dataset.map", "beta"}


def test_a_notebook_is_read_like_a_script(capsys, folder):
    cells = [
        {"cell_type": "markdown", "source": ["# ORPOConfig(beta=9)"]},
        {"cell_type": "code", "source": ["%%capture\n", "!pip install unsloth"]},
        {"cell_type": "code", "source": ["!pip list\n", *UNSLOTH.text.splitlines(keepends=True)]},
    ]
    (folder / "book.ipynb").write_text(json.dumps({"cells": cells}), encoding="utf-8")
    document = json.loads(run_here(capsys, "convert", "book.ipynb", "--json").out)
    assert (document["trainer"], document["settings"]) == ("Unsloth", UNSLOTH.settings)


def test_a_script_is_never_run(capsys, folder):
    (folder / "evil.py").write_text("open('touched', 'w')\nORPOConfig(beta=open('touched', 'w'))\n", encoding="utf-8")
    assert run_here(capsys, "convert", "evil.py").code == 3
    assert not (folder / "touched").exists()


def test_json_and_yaml_of_a_recipe_say_the_same(capsys, folder):
    (folder / "factory.json").write_text(json.dumps(yaml.safe_load(LLAMA_FACTORY.text)), encoding="utf-8")
    document = json.loads(run_here(capsys, "convert", "factory.json", "--json").out)
    assert document["settings"] == LLAMA_FACTORY.settings


def test_the_yaml_of_swift_says_the_same_as_its_flags(capsys, folder):
    given = {name: setting.value for name, setting in read_foreign(SWIFT.file).given.items()}
    (folder / "swift.yaml").write_text(yaml.safe_dump(given), encoding="utf-8")
    assert settings_of("swift.yaml") == SWIFT.settings


def test_flags_of_llama_factory_and_trl_are_read_from_a_script(capsys, folder):
    given = yaml.safe_load(LLAMA_FACTORY.text)
    flags = " ".join(f"--{name} {str(value).replace(' ', '')}" for name, value in given.items() if value is not None)
    (folder / "factory.sh").write_text(f"FORCE_TORCHRUN=1 llamafactory-cli train {flags}\n", encoding="utf-8")
    document = json.loads(run_here(capsys, "convert", "factory.sh", "--json").out)
    assert (document["trainer"], document["settings"]) == ("LLaMA-Factory", LLAMA_FACTORY.settings)
    script = "accelerate launch --config_file a.yaml scripts/orpo.py --beta 0.3 --use_peft --dataset-name org/pairs\n"
    (folder / "trl.sh").write_text(script, encoding="utf-8")
    document = json.loads(run_here(capsys, "convert", "trl.sh", "--json").out)
    assert document["trainer"] == "TRL"
    assert document["settings"].items() >= {"beta": 0.3, "use_peft": True, "dataset_name": "org/pairs"}.items()


@pytest.mark.parametrize(
    ("lines", "settings"),
    [
        ("bf16: auto\nfp16: true", {"dtype": "bfloat16"}),
        ("bf16: false\nfp16: true", {"bf16": False, "fp16": True}),
        ("bf16: true\nfp16: true", {"bf16": True, "dtype": "bfloat16"}),
        ("bf16: false", {"bf16": False}),
    ],
)
def test_the_precision_of_axolotl(folder, lines, settings):
    (folder / "more.yaml").write_text(AXOLOTL_FULL.text.replace("bf16: true", lines), encoding="utf-8")
    found = settings_of("more.yaml")
    assert {name: found[name] for name in ("bf16", "fp16", "dtype") if name in found} == settings


def test_held_out_rows_of_swift_are_evaluated_as_often_as_it_saves(folder):
    text = SWIFT.text.replace("--deepspeed zero2", "--split_dataset_ratio 0.01 --save_steps 50 --deepspeed d.json")
    (folder / "more.sh").write_text(text, encoding="utf-8")
    trainer, given = read_foreign("more.sh")
    found = {name: line.value for name, line in translate(trainer, given, folder).lines.items()}
    expected = {"test_split_size": 0.01, "eval_strategy": "steps", "eval_steps": 50, "deepspeed": "d.json"}
    assert found.items() >= expected.items()


def test_train_names_the_command_for_a_script():
    with pytest.raises(ConfigError, match=r"unsloth\.py is a script; `oddsmith convert unsloth\.py > recipe\.yaml`"):
        resolve([UNSLOTH.file], FIELDS)


def test_what_a_name_holds_adds_no_line_to_the_recipe(capsys, folder):
    (folder / "more.yaml").write_text(AXOLOTL.text + '"x\\nbeta: 9\\e[2J": 1\n', encoding="utf-8")
    outcome = run_here(capsys, "convert", "more.yaml")
    assert outcome.code == 3
    assert "# NOT TRANSLATED, decide: x beta: 9" in outcome.out
    (folder / "ours.yaml").write_text(outcome.out, encoding="utf-8")
    assert settings_of("ours.yaml") == AXOLOTL.settings
    assert "\x1b" not in outcome.out + outcome.err


def test_the_example_of_the_documentation_is_what_is_printed(capsys, folder):
    page = (Path(__file__).parents[3] / "docs/convert.md").read_text(encoding="utf-8")
    source, recipe, said = re.findall(r"^```(?:yaml\n# [^\n]*)?\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    (folder / "axolotl.yaml").write_text(source, encoding="utf-8")
    assert run_here(capsys, "convert", "axolotl.yaml") == (3, recipe, said)


def test_a_secret_is_not_printed(capsys, folder):
    (folder / "secret.yaml").write_text(AXOLOTL.text + "hub_token: hf_abcdefghijklmnopqrstuvwxyz\n", encoding="utf-8")
    outcome = run_here(capsys, "convert", "secret.yaml")
    assert "hf_abc" not in outcome.out + outcome.err
    assert "hub_token: " in outcome.out


@pytest.mark.parametrize("name", ["axolotl.yaml", "factory.yaml", "swift.sh", "mixture.yaml", "unsloth.py"])
def test_any_value_of_any_setting_gives_a_recipe_or_one_line(folder, name):
    """Whatever stands there: nothing but a ``ConfigError`` may be raised."""
    trainer, given = read_foreign(name)
    for key in [*given, "test_datasets", "eval_dataset", "val_dataset"]:
        for value in [*ODD, ",", [{"path": 1, "split": []}]]:
            with suppress(ConfigError):
                checked(translate(trainer, {**given, key: Setting(value, name)}, folder), FIELDS)


@pytest.mark.parametrize("part", ["ranking", "file_name", "hf_hub_url", "split", "subset", "columns", "tags", "folder"])
def test_any_list_of_datasets_gives_a_recipe_or_one_line(folder, part):
    trainer, given = read_foreign(LLAMA_FACTORY.file)
    for value in ODD:
        listed = {**DATASET_INFO, "shared": {**DATASET_INFO["shared"], part: value}}
        (folder / "lists/dataset_info.json").write_text(json.dumps(listed), encoding="utf-8")
        with suppress(ConfigError):
            checked(translate(trainer, given, folder), FIELDS)
