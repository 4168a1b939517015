"""Where the steps of a run lie in time and in tokens, and how long the rest takes."""

import json

import pytest
from transformers import TrainerCallback

from oddsmith.cli.terminal.progress import ShowProgress
from oddsmith.monitor.run import Run
from tests.tiny import ragged_pairs
from tests.tiny_runs import SETTINGS, make_trainer
from tests.unit.monitor.run_folders import append, line, make_run, read

EVERYTHING = (None, None, 0, 10**9)


def test_time_does_not_pass_between_an_interruption_and_its_resume(tmp_path):
    began = 1_700_000_000.0
    first = [line("log", step, loss=1.0, time=began + 2 * step) for step in (10, 20)]
    folder = make_run(tmp_path, line("start", 0, time=began), *first)
    run = read(folder)
    assert run.series(*EVERYTHING)["axes"]["elapsed_s"]["values"] == [20, 40]
    append(folder, line("start", 10, time=began + 9000), line("log", 20, loss=1.0, time=began + 9030))
    run.refresh()
    found = run.series(*EVERYTHING)["axes"]["elapsed_s"]
    assert (found["steps"], found["values"]) == ([10, 20], [20, 50])


@pytest.mark.parametrize("fields", [{"time": None}, {"time": "x"}, {}])
def test_a_run_without_times_has_no_axis_of_them(tmp_path, fields):
    lines = [json.dumps({"event": kind, "step": step, "loss": 1.0, **fields}).encode() + b"\n"
             for kind, step in (("start", 0), ("log", 10))]  # fmt: skip
    assert "elapsed_s" not in read(make_run(tmp_path, *lines)).series(*EVERYTHING)["axes"]


class Clock(TrainerCallback):
    """The clock of the terminal and of the event log: a step takes 100 seconds, and an evaluation what it does.

    It notes what the terminal says is left at each log line.
    """

    def __init__(self, shown: ShowProgress):
        self.shown, self.left, self.now = shown, {}, 1_700_000_000.0

    def time(self) -> float:
        return self.now

    monotonic = time

    def on_step_begin(self, *args, **kwargs):
        self.now += 100

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "nll_loss" in logs:
            self.left[state.global_step] = self.shown.line.remaining_s()


def test_the_monitor_and_the_terminal_say_the_same_time_is_left(tmp_path, monkeypatch):
    shown = ShowProgress()
    clock = Clock(shown)
    for module in ("cli.terminal.progress", "system.run_folder"):
        monkeypatch.setattr(f"oddsmith.{module}.time", clock)
    settings = {**SETTINGS, "max_steps": 8, "eval_strategy": "steps", "eval_steps": 2}
    make_trainer(tmp_path / "run", evaluate=ragged_pairs(4), callbacks=[shown, clock], **settings).train()
    lines = (tmp_path / "run" / "events.jsonl").read_bytes().splitlines(keepends=True)
    for number, one in enumerate(lines):
        event = json.loads(one)
        if event["event"] == "log" and event["step"] in clock.left:
            so_far = make_run(tmp_path / f"until-{event['step']}", *lines[: number + 1])
            assert read(so_far)._seconds_left == pytest.approx(clock.left[event["step"]], rel=1e-9)
    assert clock.left.keys() == set(range(1, 9))
    assert 0 < 400 - clock.left[4] < 400  # the evaluation of step 2 is left out


@pytest.mark.parametrize("odd", [10**400, -5, float("inf"), float("nan"), True, "x", None])
def test_an_odd_time_of_an_evaluation_counts_nothing(tmp_path, odd):
    times = {"log": 10.0, "evaluate": 10.0}
    logs = [line(kind, 1, loss=1.0, eval_runtime=odd, time=1_700_000_000.0 + at) for kind, at in times.items()]
    more = line("log", 2, loss=1.0, time=1_700_000_020.0)
    run = read(make_run(tmp_path, line("start", 0, max_steps=4, time=1_700_000_000.0), *logs, more))
    assert (run.skipped, run._seconds_left) == (0, 20.0)


def test_tokens_are_counted_on_and_over_a_resume(tmp_path):
    settings = {**SETTINGS, "save_strategy": "steps", "save_steps": 2, "logging_steps": 2}
    make_trainer(tmp_path / "whole", **{**settings, "max_steps": 4}).train()
    make_trainer(tmp_path / "parts", **{**settings, "max_steps": 4}).train()
    # The second half once more, from the checkpoint.
    make_trainer(tmp_path / "parts", **{**settings, "max_steps": 4}).train(
        resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-2")
    )
    counts = [read(tmp_path / name).series(*EVERYTHING)["axes"]["num_tokens"] for name in ("whole", "parts")]
    assert counts[0] == counts[1]
    assert counts[0]["steps"] == [2, 4]
    assert 0 < counts[0]["values"][0] < counts[0]["values"][1]


def test_answers_that_max_length_cut_are_marked(tmp_path):
    """By the row's number in the dataset; by its place where no row was dropped; not at all where neither is known."""
    side = {"tokens": ["a"], "change": [0.0]}

    def pair(row, **more):
        return {"row": row, "margin": 0.0, "prompt": "p", "chosen": side, "rejected": side, **more}

    def cuts(report, *pairs):
        folder = make_run(tmp_path, line("start", 0, data={"eval": report}))
        sets = {"eval": {"step": 1, "inspected": {"worst": pairs}}}
        (folder / "_held_out_pairs.json").write_text(json.dumps({"sets": sets}))
        found = read(folder).details()["pairs"][0]["inspected"]["worst"]
        return [(one["chosen"]["is_cut"], one["rejected"]["is_cut"]) for one in found]

    whole = {"rows": 5, "kept": 5, "cut": {"rejected": [1]}}
    some = {"rows": 6, "kept": 5, "cut": {"rejected": [1], "chosen": [2]}}
    assert cuts(whole, pair(0), pair(1)) == [(False, False), (False, True)]
    assert cuts(some, pair(0, dataset_row=1), pair(1, dataset_row=2), pair(1)) == [
        (False, True), (True, False), (False, False),
    ]  # fmt: skip
    for odd in (None, [], {"cut": [1]}, {"cut": {"chosen": "x", "rejected": [None, "1", 1e400]}}):
        assert cuts(odd, pair(1)) == [(False, False)]


def test_what_the_verdict_rests_on_is_counted(tmp_path):
    logs = [line("log", step, loss=1.0) for step in (1, 2, 3)]
    run: Run = read(make_run(tmp_path, line("start", 0), *logs, line("evaluate", 3, eval_loss=1.0)))
    assert run.details()["seen"] == {"log_lines": 3, "evaluations": 1}
