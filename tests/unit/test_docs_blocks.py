"""What README and docs tell a reader to type: every command is read by the real command line, all code compiles."""

import re
import shlex
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from oddsmith.cli.main import COMMANDS, GROUPS
from oddsmith.cli.parsing.schema import load_fields
from oddsmith.errors import OddsmithError
from tests.docs_blocks import PAGES, REASONS, ROOT, blocks, commands, mentions, oddsmith_calls

PROGRAMS = {
    "accelerate", "bash", "cat", "cd", "deepspeed", "echo", "git", "hf", "kubectl", "make", "oddsmith", "ollama", "pip",
    "python", "python3", "sky", "source", "tensorboard", "torchrun", "trackio", "wandb", "zip",
}  # fmt: skip
OF_OTHERS = ("# axolotl.yaml",)  # beginnings of YAML that is not a recipe of ours
GENERAL = {"--help", "--help-all", "--version", "--traceback"}
TAKE_SETTINGS = {"train", "advise", "plan", "tune", "evaluate", "demo"}  # all of them, listed in their help or not


class Read(Exception):
    """Ends a command once its words have been read."""


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """Return the entry of a command in the table, and the words after its name."""
    size = 2 if words[0] in GROUPS else 1
    return COMMANDS[" ".join(words[:size])], words[size:]  # KeyError: there is no such command


def read_words(words: list[str], patch: pytest.MonkeyPatch) -> None:
    """Let a command read its words as it does, and end it there; raises what the command line raises."""
    if words in (["--version"], ["--help"], ["--help-all"]):
        return
    command, words = command_of(words)
    if {"--help", "--help-all", "-h"} & set(words):
        return
    module = import_module(f"oddsmith.cli.commands.{command.module}")
    for name in {"resolve", "resolve_word"} & vars(module).keys():
        patch.setattr(module, name, reader(getattr(module, name)))
    with pytest.raises(Read):
        getattr(module, command.function)([word for word in words if word != "..."])


def reader(resolve):
    def read(*arguments, **named):
        resolve(*arguments, **named)
        raise Read

    return read


@pytest.mark.parametrize("page", PAGES)
def test_each_command_is_read_by_the_command_line(page, tmp_path, monkeypatch):
    """Recipes of its names lie in the folder: flags, settings and values are known, and no word is too many."""
    monkeypatch.chdir(tmp_path)
    wrong = []
    for line in commands(page):
        for words in oddsmith_calls(line):
            for word in words:
                if word.endswith((".yaml", ".yml")) and not Path(word).is_absolute():
                    Path(word).parent.mkdir(parents=True, exist_ok=True)
                    Path(word).write_text("beta: 0.1\n", encoding="utf-8")
            try:
                with monkeypatch.context() as patch:
                    read_words(words, patch)
            except (OddsmithError, KeyError) as error:
                wrong.append(f"{line}: {error!r}")
    assert not wrong


@pytest.mark.parametrize("page", PAGES)
def test_each_mentioned_command_and_flag_exists(page):
    fields = load_fields()
    for line in mentions(page):
        for words in oddsmith_calls(line):
            flags = {re.sub("=.*", "", word) for word in words if word.startswith("--")} - GENERAL
            if words[0].startswith("--"):
                assert flags <= {"--completion"}, line
                continue
            command, _ = command_of(words)
            module = import_module(f"oddsmith.cli.commands.{command.module}")
            names = getattr(module, "SETTINGS_IN_HELP", ())
            settings = [name for name in fields if names != () or command.function in TAKE_SETTINGS]
            known = {option.name for option in module.OPTIONS} | set(settings)
            assert {flag[2:].replace("-", "_").removeprefix("no_") for flag in flags} <= known, line


@pytest.mark.parametrize("page", PAGES)
def test_each_program_script_target_and_extra_exists(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for line in commands(page):
        words = [word for word in shlex.split(line) if not re.fullmatch(r"[A-Z_]+=.*", word)]
        assert words[0].removeprefix(".venv/bin/") in PROGRAMS | {"pre-commit"}, line
        if words[0] == "make":
            assert {word for word in words[1:] if "=" not in word} <= targets, line
        for script in (word for word in words if re.fullmatch(r"(?!path/to).*/.*\.(py|sh)", word)):
            assert (ROOT / script).exists() or (ROOT / page).parent.joinpath(script).exists(), line
    for extra in re.findall(r"(?:oddsmith|\.)\[([\w,-]+)\]", (ROOT / page).read_text(encoding="utf-8")):
        assert set(extra.split(",")) <= extras.keys() | {"NAME"}, extra


@pytest.mark.parametrize("page", PAGES)
def test_each_block_of_python_compiles(page):
    for block in blocks(page):
        if block.language == "python":
            compile(block.text, f"{page} {block.number}", "exec")


@pytest.mark.parametrize("page", PAGES)
def test_each_recipe_has_settings_that_exist(page):
    fields = load_fields()
    for block in blocks(page):
        if block.language == "yaml" and not block.text.startswith(OF_OTHERS):
            assert set(yaml.safe_load(block.text) or {}) <= fields.keys(), block.text


def test_each_excuse_is_needed():
    texts = "\n".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    names = {f"# {block.page} {block.number}" for page in PAGES for block in blocks(page) if block.language == "python"}
    assert {reason for reason in REASONS if reason not in texts and reason not in names} == set()
