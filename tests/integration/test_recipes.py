"""The recipes of the package: what they say of themselves, and that ``oddsmith train`` takes each of them as it is."""

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from oddsmith.cli.parsing.recipes import FACTS, shipped_recipes
from tests.command import run_here, save_model, save_pairs

RECIPES = shipped_recipes()
OURS = {name for name, recipe in RECIPES.items() if recipe.text.count("model_name_or_path: builtin:")}
ROOT = Path(__file__).parents[2]


def test_the_smallest_model_comes_first():
    sizes = [recipe.parameters for recipe in RECIPES.values()]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (135e6, 141e9)
    assert len(RECIPES) >= 8


@pytest.mark.parametrize("name", RECIPES)
def test_each_says_where_its_settings_are_from_and_whether_we_ran_it(name):
    facts = RECIPES[name].facts
    assert [fact for fact in FACTS if not facts.get(fact)] == []
    if name in OURS:
        assert re.match(r"2026-\d\d-\d\d, .*\d min", facts["measured"])
    else:
        assert facts["measured"].startswith("published, not run here")


@pytest.mark.parametrize("name", sorted(set(RECIPES) - OURS))
def test_a_published_recipe_is_taken_up_to_where_its_model_would_be_fetched(name, tmp_path, capsys):
    words = (
        "--dataset-name",
        "builtin:house-style",
        "--dataset-train-split",
        "train",
        "--dataset-test-split",
        "heldout",
    )
    done = run_here(capsys, "train", "--recipe", name, *words, "--output-dir", tmp_path / "run", "--dry-run")
    settings = yaml.safe_load(RECIPES[name].text)
    expected = f"error: {settings['model_name_or_path']}: is no folder here, and the hub cannot be reached for it"
    assert (done.code, done.err[: len(expected)]) == (2, expected)
    assert f"# {RECIPES[name].path}:" in done.out  # where its settings are from


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(OURS))
def test_a_recipe_of_ours_trains_as_it_is(name, tmp_path, capsys):
    done = run_here(capsys, "train", "--recipe", name, "--output-dir", tmp_path / "run", "--dry-run")
    assert done.code == 0, done.err
    assert "103 rows" in done.out


def test_flags_beat_a_recipe(tmp_path, capsys):
    model, pairs = save_model(tmp_path / "model"), save_pairs(tmp_path / "pairs.jsonl")
    given = ("--model-name-or-path", model, "--dataset-name", pairs, "--eval-strategy", "no", "--beta", "0.3")
    to = ("--output-dir", tmp_path / "run", "--json", "--dry-run")
    done = run_here(capsys, "train", "--recipe", "smollm2-135m-lora", *given, *to)
    settings = json.loads(done.out)["settings"]
    assert (settings["beta"]["value"], settings["beta"]["origin"]) == (0.3, "--beta")
    assert settings["learning_rate"]["value"] == 3e-4
    assert "smollm2-135m-lora.yaml:" in settings["learning_rate"]["origin"]


@pytest.mark.parametrize("foreign", [False, True])
def test_a_file_may_be_given_like_a_recipe(foreign, tmp_path, capsys):
    """Another trainer's, too: what is translated is what the positional would be."""
    model, pairs = save_model(tmp_path / "model"), save_pairs(tmp_path / "pairs.jsonl")
    ours = f"model_name_or_path: {model}\ndataset_name: {pairs}\nbeta: 0.4\n"
    axolotl = (
        f"base_model: {model}\nrl: orpo\norpo_alpha: 0.4\nlearning_rate: 1e-5\nnum_epochs: 1\n"
        f"micro_batch_size: 2\ngradient_accumulation_steps: 1\ndatasets:\n  - path: {pairs}\n"
    )
    (tmp_path / "mine.yaml").write_text(axolotl if foreign else ours, encoding="utf-8")
    words = ("--output-dir", tmp_path / "run", "--json", "--dry-run")
    ways = (("--recipe", tmp_path / "mine.yaml"), (tmp_path / "mine.yaml",))
    settings = [json.loads(run_here(capsys, "train", *way, *words).out)["settings"] for way in ways]
    assert settings[0] == settings[1]
    assert settings[0]["beta"]["value"] == 0.4


def test_they_are_listed_and_printed(capsys):
    listed = run_here(capsys, "recipes").out
    assert [line for line in listed.splitlines() if not line.startswith(" ")] == list(RECIPES)
    assert "published, not run here" in listed
    document = json.loads(run_here(capsys, "recipes", "--json").out)
    assert [recipe["name"] for recipe in document["recipes"]] == list(RECIPES)
    for name, recipe in RECIPES.items():
        assert run_here(capsys, "recipes", name).out == recipe.text


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="a source distribution has no link")
def test_they_lie_at_the_root_of_the_repository_and_in_the_package():
    """hatchling puts a folder that two paths lead to under the first alone: a wheel without recipes."""
    assert (ROOT / "recipes").resolve() == (ROOT / "src" / "oddsmith" / "recipes").resolve()
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"]
    included = set(build["sdist"]["only-include"])
    assert included >= {"src", "tests", "docs", "benchmarks", "examples", "scripts"}
    assert "recipes" not in included
    assert {path.stem for path in (ROOT / "recipes").glob("*.yaml")} == set(RECIPES)


def test_the_page_lists_them():
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    for name, recipe in RECIPES.items():
        assert f"| `{name}` | {recipe.facts['model']} | {recipe.facts['method']} | {recipe.facts['hardware']} |" in page
