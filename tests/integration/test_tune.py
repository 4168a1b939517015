"""``oddsmith tune`` on a tiny real model: real trainings in processes of their own, killed and started again."""

import json
import os
import re
import signal
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from oddsmith.cli.main import main
from oddsmith.cli.parsing.config_file import read_config
from oddsmith.system.run_folder import LOCK_OWNER_FILE, read_events
from tests.command import (
    SETTINGS,
    run_forked,
    run_here,
    save_config,
    save_model,
    save_pairs,
)
from tests.forked import fork_server, redirect_output
from tests.terminal import Terminal

SHORT = ("--steps", "10", "--search", "learning_rate=3e-3,1", "--search", "beta=0.1,0.3")


@pytest.fixture(scope="module")
def workshop(tmp_path_factory) -> Path:
    """A folder with a model, pairs, and a recipe that evaluates on nothing."""
    folder = tmp_path_factory.mktemp("tune")
    save_model(folder / "model")
    save_pairs(folder / "pairs.jsonl", 60)
    paths = {"model_name_or_path": str(folder / "model"), "dataset_name": str(folder / "pairs.jsonl")}
    save_config(folder / "recipe.yaml", **paths, **SETTINGS, output_dir=str(folder / "run"), num_train_epochs=1)
    return folder


@pytest.fixture(scope="module")
def searched(workshop):
    """A whole search: all four combinations may be tried, those with learning rate 1 diverge."""
    return run_forked("tune", workshop / "recipe.yaml", *SHORT, "--trials", 5, "--json"), workshop / "run-tune"


@pytest.mark.slow
def test_it_ends_with_a_recipe_and_the_evidence(searched, workshop):
    done, folder = searched
    assert done.code == 0, done.err
    document = json.loads(done.out)
    probes = document["probes"]
    assert probes[0]["values"] == {"learning_rate": 1e-3, "beta": 0.1}  # the recipe's own, no choice of --search
    assert len({json.dumps(one["values"]) for one in probes}) == len(probes) == 5
    assert {one["steps"] for one in probes if one["state"] == "finished"} == {10}
    assert {one["pairs"] for one in probes} - {0} == {12}  # a fifth of 60
    assert probes[0]["held_out"].startswith("a fifth of the training pairs")
    for number, one in enumerate(probes):
        run = folder / "probes" / f"{number:03d}"
        assert one["name"] == run.name
        assert [event["step"] for event in read_events(run) if event["event"] == "evaluate"][:1] == [3]
        assert not list(run.glob("*.safetensors"))
    recipe = folder / "recipe.yaml"
    text = recipe.read_text(encoding="utf-8")
    values = read_config(recipe)
    assert {name: values[name].value for name in ("learning_rate", "beta")} == document["winner"]
    assert values["output_dir"].value == str(workshop / "run")
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert any("Judged on 12 held-out pairs" in line for line in comments)
    assert sum(bool(re.match(r"#\s+>?\s*0\d\d", line)) for line in comments) >= len(probes)


@pytest.mark.slow
def test_a_probe_that_diverges_loses_by_its_diagnosis(searched):
    document = json.loads(searched[0].out)
    diverged = [one for one in document["probes"] if one["values"]["learning_rate"] == 1]
    assert diverged
    for one in diverged:
        assert one["verdict"] == "act", one
        assert one["finding"]
    assert document["best"]["learning_rate"] != 1


@pytest.mark.slow
def test_all_probes_train_on_the_same_pairs_in_the_same_order(searched):
    """The first log line comes before the first update has any effect, but for beta."""
    document, folder = json.loads(searched[0].out), searched[1]
    first = {}
    for one in document["probes"]:
        line = next(event for event in read_events(folder / "probes" / one["name"]) if event["event"] == "log")
        first[one["name"]] = (line["nll_loss"], line["or_loss"])
    assert len(set(first.values())) == 1
    digests = {json.loads((folder / "probes" / name / "result.json").read_text("utf-8"))["pairs"] for name in first}
    assert len(digests - {""}) == 1


@pytest.mark.slow
def test_the_picture_shows_every_probe_without_a_background(searched):
    folder = searched[1]
    text = (folder / "tune.svg").read_text(encoding="utf-8")
    root = ET.fromstring(text)
    words = " ".join(part.text or "" for part in root.iter("{http://www.w3.org/2000/svg}text"))
    assert all(f"{number:03d}" in words for number in range(5))
    assert "prefers-color-scheme: dark" in text
    assert not list(root.iter("{http://www.w3.org/2000/svg}rect"))


@pytest.mark.slow
def test_the_same_command_asks_nothing_twice(searched, workshop):
    before = {file: file.stat().st_mtime_ns for file in searched[1].glob("probes/*/result.json")}
    again = run_forked("tune", workshop / "recipe.yaml", *SHORT, "--trials", 5)
    assert again.code == 0, again.err
    assert {file: file.stat().st_mtime_ns for file in searched[1].glob("probes/*/result.json")} == before
    assert again.err.count("was there") == len(before)
    assert "gain: cost of the recipe's own settings less that of a probe" in again.out
    assert f"next: oddsmith train {workshop}/run-tune/recipe.yaml" in again.out


@pytest.mark.slow
def test_a_terminal_shows_a_table_as_it_grows(searched, workshop):
    with Terminal("tune", workshop / "recipe.yaml", *SHORT, "--trials", 5, columns=120) as terminal:
        drawn = terminal.wait_for(r"probe +learning_rate +beta +cost.*000 +0.001")  # live, and drawn over
        assert "\x1b[?25l" in terminal.raw
        terminal.wait_for(r"next: oddsmith train", since=drawn)
        assert terminal.end() == 0
    assert not [line for line in terminal.text.splitlines() if len(line) > 120]
    assert "was there" not in terminal.text


@pytest.mark.slow
def test_another_search_is_refused_there(searched, workshop, capsys):
    other = run_here(capsys, "tune", workshop / "recipe.yaml", *SHORT[:4], "--max-length", 32)
    assert other.code == 2
    assert "holds another search: beta, max_length, own beta are not the same" in other.err
    assert len(other.err.strip().splitlines()) == 1


@pytest.mark.slow
def test_the_recipe_that_won_trains(searched, workshop):
    done = run_forked("train", searched[1] / "recipe.yaml", "--output-dir", workshop / "won", "--max-steps", 2)
    assert done.code == 0, done.err
    assert (workshop / "won" / "model.safetensors").is_file()


@pytest.mark.slow
def test_a_killed_search_goes_on_and_ends_the_same(searched, workshop):
    """Killed in the middle of its second probe, whose process ends with it; then interrupted by Ctrl-C."""
    folder, log = workshop / "killed", workshop / "killed.log"
    words = ["tune", str(workshop / "recipe.yaml"), *SHORT, "--trials", "5", "--output", str(folder)]
    for signal_number, number, code in ((signal.SIGKILL, 1, -9), (signal.SIGINT, 2, 75)):
        search = fork_server().Process(target=search_apart, args=(words, log))
        search.start()
        run = folder / "probes" / f"{number:03d}"
        wait_for(lambda run=run: "log" in [event["event"] for event in read_events(run)])
        probe = json.loads((run / LOCK_OWNER_FILE).read_text(encoding="utf-8"))["pid"]
        os.kill(search.pid, signal_number)
        search.join(60)
        assert search.exitcode == code, log.read_text(encoding="utf-8")
        wait_for(lambda probe=probe: not is_alive(probe))
        assert not (run / "result.json").exists()
    assert f"go on with: oddsmith tune {workshop}/recipe.yaml" in log.read_text(encoding="utf-8")
    done = run_forked(*words, "--json")
    assert done.code == 0, done.err
    undisturbed, resumed = json.loads(searched[0].out), json.loads(done.out)
    for document in (undisturbed, resumed):
        document.pop("files")
        document.pop("next")
        for one in (*document["probes"], *document["again"]):
            del one["seconds"]
    assert resumed == undisturbed
    assert done.err.count("was there") == 2


def search_apart(words: list[str], log: Path) -> None:
    redirect_output(log)
    main(words)


@pytest.mark.slow
def test_where_no_probe_can_win_no_recipe_is_written(workshop, tmp_path):
    """Judged on the recipe's own evaluation set. Weights that hardly move ask for another learning rate: act."""
    save_pairs(tmp_path / "held.jsonl", 20)
    words = ("--learning-rate", 1e-9, "--search", "beta=0.1,0.3", "--steps", 10, "--output", tmp_path / "tune")
    words += ("--per-device-train-batch-size", 60)  # all pairs in each step: the loss stays as it is
    words += ("--eval-dataset-name", tmp_path / "held.jsonl", "--json")
    done = run_forked("tune", workshop / "recipe.yaml", *words)
    assert done.code == 3
    document = json.loads(done.out)
    said = " ".join(document["words"])
    assert "No probe can win, of 2 probes (all 2 combinations were tried)" in said
    assert f"Judged on 20 held-out pairs (the recipe's eval_dataset_name, {tmp_path}/held.jsonl)" in said
    assert (document["outcome"], document["winner"], document["next"]) == ("none", None, None)
    assert {one["pairs"] for one in document["probes"]} == {20}
    assert not (tmp_path / "tune" / "recipe.yaml").exists()
    assert (tmp_path / "tune" / "tune.svg").is_file()


@pytest.mark.slow
def test_what_the_recipe_itself_gets_wrong_is_one_line(workshop, tmp_path):
    """Found in the process of the first probe; so are values of --search that settings refuse together."""
    for words, message in (
        (("--dataset-name", "nowhere.jsonl"), "nowhere.jsonl: no such file"),
        (("--search", "beta=-1,0.1"), "beta is -1"),
    ):
        done = run_forked("tune", workshop / "recipe.yaml", *words, "--output", tmp_path / "tune")
        assert done.code == 2
        assert message in done.err.splitlines()[-1]
        assert "Traceback" not in done.err


def wait_for(condition) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[:1]


@pytest.mark.slow
def test_a_stream_that_is_too_short_to_hold_out_of_is_one_line(workshop, tmp_path):
    words = ("--dataset-streaming", "--max-steps", 12, "--output", tmp_path / "short")
    done = run_forked("tune", workshop / "recipe.yaml", *SHORT, *words)
    assert done.code == 2
    assert "held-out pairs: the first 256 rows of the stream" in done.err
    assert "error: the stream has no more than the 256 rows that are held out for the probes" in done.err
