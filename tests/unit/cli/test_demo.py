"""What ``oddsmith demo`` prints, around a demo that takes no time."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from oddsmith import ORPOConfig
from oddsmith.cli import demo as work
from oddsmith.data.builtin import demo_pairs
from tests.command import run_here, save_model


@pytest.fixture
def quick_demo(monkeypatch, tmp_path):
    """Replaces the work by its outcome; returns the settings it was called with."""
    called = {}
    monkeypatch.chdir(tmp_path)

    def run_demo(output_dir, *, model=work.MODEL, callbacks=None, on_stage=None, **settings):
        called.update(settings, output_dir=str(output_dir), model=model)
        questions = [pair["prompt"][-1]["content"] for pair in demo_pairs("heldout")]
        args = ORPOConfig(output_dir=str(output_dir), use_cpu=True, bf16=False)
        trainer = SimpleNamespace(train_dataset=[1, 2, 3], args=args)
        standings = []
        for when, share in (("before", 0.25), ("after", 0.9)):
            on_stage("answer", (len(questions), len(questions), when))
            answers = [f"{when}: yes."] * len(questions)
            facts = [index % 2 == 0 or when == "after" for index in range(len(questions))]
            standings.append(work.Standing(answers, facts, share, share, share, 10 * share))
            if when == "after":
                for step in (2, 4):
                    logs = {"logps/chosen": -step, "logps/rejected": -1.0}
                    callbacks[0].on_log(None, SimpleNamespace(global_step=step), None, logs=logs)
            on_stage("standing", (when, standings[-1]))
            if when == "before":
                on_stage("train", trainer)
        on_stage("save", output_dir)
        on_stage("deploy", output_dir)
        file = work.Deployed("oddsmith-demo/gguf/a b.gguf", 105_000_000, 0.0234, "In 4 bits: yes.")
        outcome = (file, None) if model == work.MODEL else (None, f"{model}: is a mamba")
        return work.DemoResult(questions, *standings, (0.301, 0.498), str(output_dir), *outcome)

    monkeypatch.setattr(work, "run_demo", run_demo)
    return called


def test_answers_and_figures_before_and_after_are_shown(quick_demo, capsys):
    outcome = run_here(capsys, "demo", "--num-train-epochs", "1")
    assert outcome.code == 0
    question = demo_pairs("heldout")[0]["prompt"][-1]["content"]
    before, after = outcome.out.split("The model after training:")
    assert f"  {question}\n    > before: yes.\n" in before
    assert f"  {question}\n    > after: yes.\n" in after
    table = [line.split() for line in after.splitlines() if line.endswith(("after", "%", "0"))]
    assert ["before", "after"] in table
    assert ["answers", "that", "keep", "the", "style", "25%", "90%"] in table
    assert ["answers", "with", "the", "right", "fact", "50%", "100%"] in table
    assert "facts, 95% of the change: +30 to +50 points, on " in after
    assert (quick_demo["num_train_epochs"], quick_demo["output_dir"]) == (1, "oddsmith-demo")


def test_the_gap_is_drawn_between_the_training_and_the_answers_after_it(quick_demo, capsys):
    before, _, after = run_here(capsys, "demo").out.partition("log-probability a token, in nats")
    chart, _, after = after.partition("The model after training:")
    assert "The model before training:" in before
    assert chart.strip().endswith("chosen - rejected: -1.00 at step 2, -3.00 at step 4")


def test_the_interval_of_a_change_holds_what_is_lost_and_gained():
    kept = [True] * 58 + [False] * 6
    low, high = work.change_interval(kept, kept)
    assert low == pytest.approx(-high)
    assert 0.02 < high < 0.05
    # By hand: 5 lost and 1 gained of 62 are -4/64 after adding a half to each cell.
    before, after = [True] * 55 + [True] * 5 + [False] * 2, [True] * 55 + [False] * 5 + [True, False]
    low, high = work.change_interval(before, after)
    assert (low + high) / 2 == pytest.approx(-4 / 64)
    assert (high - low) / 2 == pytest.approx(1.96 * ((7 / 64 - (4 / 64) ** 2) / 64) ** 0.5)


def test_it_ends_with_a_file_and_what_it_says(quick_demo, capsys):
    end = run_here(capsys, "demo").out.split("perplexity of good answers")[1]
    question = demo_pairs("heldout")[0]["prompt"][-1]["content"]
    assert "oddsmith-demo/gguf/a b.gguf: 105 MB, KL 0.023 a token from the model in 16 bits.\n" in end
    assert f"  {question}\n    > In 4 bits: yes.\n" in end
    assert end.endswith("  next: oddsmith chat 'oddsmith-demo/gguf/a b.gguf'\n")


def test_a_model_that_cannot_become_a_file_is_still_shown(quick_demo, capsys):
    save_model(Path("mine"))
    outcome = run_here(capsys, "demo", "--model", "mine")
    assert outcome.code == 0
    assert outcome.out.endswith("\nNot made into a file for llama.cpp: mine: is a mamba\n")


def test_the_folder_is_a_run_that_a_second_demo_replaces(quick_demo, capsys):
    assert run_here(capsys, "demo").code == 0
    settings = yaml.safe_load(Path("oddsmith-demo/run.yaml").read_text())
    assert (settings["dataset_name"], settings["use_peft"]) == ("builtin:house-style", True)
    assert settings["lora_r"] == work.ADAPTER["lora_r"]
    assert settings["learning_rate"] == work.SETTINGS["learning_rate"]
    Path("oddsmith-demo/old").touch()
    assert run_here(capsys, "demo").code == 0
    assert not Path("oddsmith-demo/old").exists()


def test_a_folder_of_something_else_is_refused(quick_demo, capsys):
    Path("mine").mkdir()
    Path("mine/notes.txt").touch()
    outcome = run_here(capsys, "demo", "--output-dir", "mine")
    assert (outcome.code, "is not empty and holds no run" in outcome.err) == (2, True)
    assert not quick_demo


def test_json_is_alone_on_stdout(quick_demo, capsys):
    document = json.loads(run_here(capsys, "demo", "--json").out)
    assert (document["command"], document["before"]["accuracy"], document["after"]["accuracy"]) == ("demo", 0.25, 0.9)


def test_the_demo_brings_model_adapter_and_pairs(quick_demo, capsys):
    outcome = run_here(capsys, "demo", "--lora-r", "3")
    assert outcome == (2, "", "error: --lora-r is no setting of the demo, which brings its pairs and its adapter\n")
    save_model(Path("runs/mine"))
    run_here(capsys, "demo", "--model", "runs/mine")
    assert quick_demo["model"] == "runs/mine"
