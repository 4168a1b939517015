"""From a table with columns of its own to a trained model in two commands, of which the first prints the second."""

import csv
import json
import shlex
import subprocess

import pytest
import yaml

from tests.command import run_here, save_model

NAMES = ("id", "The $Question's", 'good "answer"', "bad; answer")
WORDS = ("--no-bf16", "--use-cpu", "--max-steps", "2", "--beta=0.25", "--max-length", "64")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("my table")
    save_model(folder / "model")
    with (folder / "mine.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(NAMES)
        table.writerows((n, f"What is {n} and {n}?", f"It is {2 * n}.", f"It's not {n}.") for n in range(8))
    return folder


def offered(outcome, start):
    """Return the words of the command that was printed last, as a shell reads them."""
    assert outcome.code == 2
    error, command = outcome.err.splitlines()[-2:]
    assert error.startswith("error: ")
    assert command.startswith(f"  oddsmith {start}")
    shell = f"oddsmith() {{ printf '%s\\0' \"$@\"; }}; {command}"
    words = subprocess.run(["sh", "-c", shell], capture_output=True, check=True, text=True).stdout.split("\0")[:-1]
    assert words == shlex.split(command)[1:]
    return words


@pytest.fixture(scope="module")
def run(place):
    return place / "my run"


def test_the_printed_command_trains(place, run, monkeypatch, capsys):
    monkeypatch.chdir(place)
    typed = ["train", "--model-name-or-path", "model", "--dataset-name", "mine.csv", *WORDS, "--output-dir", str(run)]
    words = offered(run_here(capsys, *typed), "train")
    assert words[: len(typed)] == typed
    outcome = run_here(capsys, *words)
    assert outcome.code == 0, outcome.err
    settings = yaml.safe_load((run / "run.yaml").read_text())
    assert (settings["beta"], settings["columns"]) == (0.25, words[-1])
    assert "8 kept" in outcome.err
    assert (run / "model.safetensors").is_file()


def test_other_commands_that_read_pairs(place, run, monkeypatch, capsys):
    monkeypatch.chdir(place)
    words = offered(run_here(capsys, "data", "check", "mine.csv", "--columns", f"prompt={NAMES[1]}"), "data check")
    checked = run_here(capsys, *words, "--json")
    assert json.loads(checked.out)["formats"] == {"standard": 8}
    words = offered(
        run_here(capsys, "eval", run, "--dataset-name", "mine.csv", "--dataset-test-split", "train"), "eval"
    )
    measured = run_here(capsys, *words, "--json")
    assert measured.code == 0, measured.err
    assert json.loads(measured.out)["data"]["eval"]["kept"] == 8
    outcome = run_here(capsys, "compare", "model", run, "--prompts", "mine.csv", "--json")
    assert json.loads(outcome.out)["command"] == outcome.err.splitlines()[-1].strip()
    words = offered(outcome, "compare")
    compared = run_here(capsys, *words, "--max-new-tokens", "2", "--split", "test[:2]")
    assert compared.code == 0, compared.err
    assert json.loads(compared.out)["rows"][0]["tuned"]["log_odds"] is not None
