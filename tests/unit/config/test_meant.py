"""What was probably meant by a wrong name: by its meaning, also as other trainers call things."""

import pytest

from oddsmith.cli.parsing.foreign_files import read_foreign, translated_recipe
from oddsmith.cli.parsing.schema import load_fields
from oddsmith.config.catalogue import SETTINGS
from oddsmith.config.meant import MEANT, meant_by, nearest
from oddsmith.config.spellings import OLDER
from tests.command import run_here, save_config
from tests.foreign_recipes import EXAMPLES

# A second setting of its value's: only the whole recipe says what it is here.
BY_THE_WHOLE_RECIPE = {"pref_ftx"}


def test_what_is_meant_are_settings_and_no_name_stands_for_itself():
    settings = {name for meant in MEANT.values() for name in ([meant] if isinstance(meant, str) else meant)}
    assert settings <= set(SETTINGS)
    assert not set(MEANT) & (set(SETTINGS) | set(OLDER))
    for meant in MEANT.values():
        for name, value in meant.items() if isinstance(meant, dict) else ():
            assert ("bool" if isinstance(value, bool) else "list") in load_fields()[name].types


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.file)
def test_names_of_other_trainers_are_understood_one_by_one(example, tmp_path):
    """Each name that ``oddsmith convert`` translates is suggested rightly where it stands alone."""
    (tmp_path / example.file).write_text(example.text)
    path = str(tmp_path / example.file)
    recipe = translated_recipe(path, read_foreign(path))
    translated: dict[str, set[str]] = {}
    for name, line in recipe.lines.items():
        translated.setdefault(line.source.rpartition(".")[2], set()).add(name)
    theirs = translated.keys() - {"", *SETTINGS, *OLDER, *BY_THE_WHOLE_RECIPE}
    wrong = {name: meant_by(name, SETTINGS) for name in theirs if nearest(name, SETTINGS) not in translated[name]}
    assert not {name: meant for name, meant in wrong.items() if not set(meant or ()) & translated[name]}


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("--lora", "did you mean --use-peft?"),
        ("--qlora", "did you mean --use-peft --load-in-4bit?"),
        ("--lora-rank 8", "did you mean --lora-r?"),
        ("--precision bf16", "did you mean --bf16?"),
        ("--fp32", "did you mean --no-bf16?"),
        ("--val-size 0.1", "did you mean --test-split-size?"),
        ("--data pairs.jsonl", "did you mean --dataset-name?"),
        ("--wandb", "did you mean --report-to wandb?"),
        ("--monitor", "`oddsmith monitor` is a command of its own"),
        ("--template chatml", "did you mean --chat-template?"),
        ("--patience 3", "did you mean --early-stopping-patience?"),
        ("--learnin-rat 3", "did you mean --learning-rate?"),  # by spelling
        ("--resumee", "did you mean --resume?"),
        ("--quickly", "`oddsmith train --help-all` lists all settings"),
    ],
)
def test_flags_are_suggested_as_they_are_typed(given, hint, capsys):
    flag = given.split()[0]
    assert run_here(capsys, "train", *given.split()) == (2, "", f"error: unknown flag {flag}; {hint}\n")


def test_lines_of_a_file_are_suggested_as_they_are_written(tmp_path, capsys):
    file = save_config(tmp_path / "c.yaml", model_name_or_path="m", dataset_name="d", qlora=True)
    expected = f"error: {file}:3: unknown setting qlora; did you mean use_peft: true and load_in_4bit: true?\n"
    assert run_here(capsys, "train", file).err == expected


def test_a_setting_of_a_training_is_named_as_one_by_the_other_commands(capsys):
    expected = "chat_template is a setting of a training: `oddsmith train --chat-template ...`"
    assert run_here(capsys, "chat", "m", "--chat-template", "chatml").err.rstrip().endswith(expected)
    assert "did you mean --quantize?" in run_here(capsys, "export", "m", "--quantise", "q4_k_m").err


def test_only_what_may_be_given_is_suggested():
    assert nearest("qlora", {"use_peft"}) is None  # as one of the two is not there
    assert nearest("lora", {"use_peft"}) == "use_peft"
    assert meant_by("evaluation_strateg", SETTINGS) == {"eval_strategy": ...}  # an older name, misspelt
