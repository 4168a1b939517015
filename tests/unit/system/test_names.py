"""Names of run folders and exports that look like flags, are invisible or too long; and nothing is written for them."""

from pathlib import Path

import pytest

from oddsmith import ORPOConfig
from oddsmith.errors import ConfigError
from oddsmith.export.atomic import write_file, write_folder
from oddsmith.system.names import require_folder_name
from tests.command import SETTINGS, run_here, save_config, save_model, save_pairs

BAD = {
    "-rf": "begins with a dash", "runs/--help": "begins with a dash", "": "is empty", "   ": "is empty",
    "a\0b": "an invisible character", "a\nb": "an invisible character", "\x1b[31mred": "an invisible character",
    "a\u202eb": "an invisible character", "run ": "ends with a space", "runs/... /a": "ends with a space",
    "x" * 300: "is longer than 240 bytes", "ä" * 130: "is longer than 240 bytes",
    "/".join(["abcdefghi"] * 500): "is longer than 3,800 bytes",
}  # fmt: skip
SOMETHING = {**SETTINGS, "model_name_or_path": "m", "dataset_name": "p"}
GOOD = ["run", "run.", "con", "runs/a-b.c", "../run", "/tmp/run", ".hidden", "null", "läuft", "a b", "~/runs/a", "v1.0"]


@pytest.mark.parametrize("name", BAD)
def test_bad_names(name):
    with pytest.raises(ConfigError, match=BAD[name]):
        require_folder_name(name, "output_dir")


@pytest.mark.parametrize("name", GOOD)
def test_good_names(name):
    require_folder_name(name, "output_dir")


@pytest.mark.parametrize("name", [name for name in BAD if "\0" not in name])
def test_the_command_writes_nothing(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    config = save_config(tmp_path / "config.yaml", **SOMETHING, output_dir=name)
    outcome = run_here(capsys, "train", config)
    assert outcome.code == 2
    assert len(outcome.err.strip().splitlines()) < 30
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("name", ["..", "/", "."])
def test_folders_that_hold_something_else_are_left_alone(tmp_path, monkeypatch, capsys, name):
    inside = tmp_path / "inside"
    inside.mkdir()
    monkeypatch.chdir(inside)
    save_model(inside / "model")
    pairs = str(save_pairs(inside / "p.jsonl"))
    config = save_config(inside / "c.yaml", **SETTINGS, model_name_or_path="model", dataset_name=pairs)
    before = sorted(tmp_path.rglob("*"))
    for flags in ((), ("--overwrite-output-dir",)):
        outcome = run_here(capsys, "train", config, "--output-dir", name, *flags)
        assert outcome.code == 2
        assert "is not empty and holds no run" in " ".join(outcome.err.split())
    assert sorted(tmp_path.rglob("*")) == before


def test_settings_in_python():
    with pytest.raises(ConfigError, match="output_dir '-rf': the name '-rf' begins with a dash"):
        ORPOConfig(output_dir="-rf")


def test_exports(tmp_path):
    for write in (write_folder, write_file):
        with pytest.raises(ConfigError, match="begins with a dash"), write(tmp_path / "-aux"):
            pass
    assert not list(tmp_path.iterdir())


def test_a_tilde_means_the_home_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "home" / "run"
    run.mkdir(parents=True)
    (run / "notes").write_text("mine")
    config = save_config(tmp_path / "c.yaml", **SOMETHING, output_dir="~/run")
    outcome = run_here(capsys, "train", config)
    assert "is not empty and holds no run" in " ".join(outcome.err.split())
    assert not Path("~").exists()


@pytest.mark.parametrize("name", ["../up", "-x/y", "a/b/c", "a b", "x" * 200, "a/.."])
def test_names_of_repositories(tmp_path, capsys, name):
    config = save_config(tmp_path / "c.yaml", **SOMETHING, output_dir=str(tmp_path / "r"))
    outcome = run_here(capsys, "train", config, f"--hub-model-id={name}", "--push-to-hub")
    assert outcome.code == 2
    assert "hub_model_id" in outcome.err
