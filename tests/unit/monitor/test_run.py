"""Reading one run for the page: whatever is in its folder, reading it does not fail."""

import json
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oddsmith.diagnose.readers import read_history
from oddsmith.diagnose.rules import judge
from oddsmith.monitor.events import MAX_MARKS
from oddsmith.monitor.run import Run
from oddsmith.monitor.series import MAX_POINTS
from tests.unit.monitor.run_folders import append, line, make_run, read
from tests.unit.system.test_outside import SPECIAL

EVERYTHING = (None, None, -math.inf, math.inf)


def snapshot(below_zero: float) -> dict:
    """An evaluation's event ``pairs``, without its set."""
    odds = {"mean": 0.1, "deviation": 1.0, "pairs": 4}
    return {"margins": {"edges": [-1, 0, 1], "counts": [1, 3]}, "log_odds": odds, "below_zero": below_zero}


def losses(run: Run) -> dict[int, float]:
    view = run.series(*EVERYTHING)["training"]["loss"]
    return dict(zip(view["steps"], view["values"], strict=True))


def test_a_page_gets_only_what_is_new_after_its_version(tmp_path):
    folder = make_run(tmp_path, line("start", 0), line("log", 1, loss=3.0))
    run = read(folder)
    first = run.series(*EVERYTHING)
    assert first["complete"]
    append(folder, line("log", 2, loss=2.0), line("evaluate", 2, eval_loss=2.5))
    assert run.refresh()
    new = run.series(first["version"], first["generation"], -math.inf, math.inf)
    assert not new["complete"]
    assert new["training"]["loss"]["steps"] == [2]
    assert new["held_out"][""]["loss"]["values"] == [2.5]
    assert not run.refresh()
    last = run.series(new["version"], new["generation"], -math.inf, math.inf)
    assert (last["training"], last["held_out"]) == ({}, {"": {}})


def test_after_a_resume_the_repeated_steps_count_and_the_page_starts_anew(tmp_path):
    folder = make_run(tmp_path, line("start", 0), *(line("log", step, loss=9.0) for step in (10, 20, 30)))
    run = read(folder)
    before = run.series(*EVERYTHING)
    append(folder, line("start", 10), line("log", 20, loss=5.0))
    run.refresh()
    assert losses(run) == {10: 9.0, 20: 5.0}
    assert run.series(before["version"], before["generation"], -math.inf, math.inf)["complete"]


def test_reading_at_once_and_bit_by_bit_give_the_same(tmp_path):
    """A resume undoes what came after its step, whether the page saw it happen or was opened later."""
    lines = [
        line("start", 0),
        *(line("log", step, loss=9.0) for step in (10, 20, 30)),
        line("evaluate", 20, eval_loss=8.0),
        line("pairs", 20, set="eval", **snapshot(0.7)),
        line("samples", 20, set="eval", answers=[{"Prompt": "p", "Policy": "old"}]),
        line("skipped", 25, cause="gradient", rows=[3], num_rows=1),
        line("start", 10),
        line("log", 20, loss=5.0),
        line("pairs", 20, set="eval", **snapshot(0.3)),
    ]
    late = read(make_run(tmp_path / "late", *lines))
    early = read(make_run(tmp_path / "early"))
    for one in lines:
        append(tmp_path / "early", one)
        early.refresh()
    for run in (early, late):
        assert losses(run) == {10: 9.0, 20: 5.0}
        assert run.history.held_out[""]["loss"].steps.tolist() == []
        details = run.details()
        assert [one["below_zero"] for one in details["snapshots"]] == [0.3]
        assert details["samples"] == []
        assert [(mark["kind"], mark["step"]) for mark in details["marks"]] == [("resumed", 10)]
        assert run.summary()["happened"] == {"resumed": 1}
    assert [finding.to_dict() for finding in judge(read_history(tmp_path / "late"))] == late.findings()


def test_who_waits_is_shown_as_it_was_last(tmp_path):
    lines = [line("start", 0), *(line("ranks", step, waiting_share=[0.5, 0.1 * step, 0.3]) for step in (1, 2))]
    run = read(make_run(tmp_path, *lines))
    assert run.details()["ranks"] == {"step": 2, "waiting_share": [0.5, 0.2, 0.3]}
    assert run.summary()["waiting"] == {"mean": pytest.approx(1 / 3), "slowest": 1, "processes": 3}
    append(tmp_path, line("start", 1))
    run.refresh()
    assert run.summary()["waiting"] is None


@pytest.mark.parametrize("shares", [None, 7, "x", {}, [], [0.1, None], [0.1, "x"], [0.1, True], [1e999]])
def test_shares_that_are_none_are_left_out(tmp_path, shares):
    run = read(make_run(tmp_path, line("start", 0), line("ranks", 1, waiting_share=shares)))
    assert run.details()["ranks"] is None
    assert run.summary()["waiting"] is None


def test_incidents_are_shown_with_their_rows(tmp_path):
    rows = list(range(20, 60))
    folder = make_run(
        tmp_path,
        line("start", 0),
        line("skipped", 7, cause="log-probabilities", loss=None, rows=rows, num_rows=90),
        line("spike", 9, cause="spike", loss=12.3456, rows=[5], num_rows=1),
        line("rolled_back", 12, checkpoint="checkpoint-10"),
        line("not_finite", 20, rows=[1], num_rows=1),
        line("skipped", 21, cause=7, rows="no", num_rows="many"),
    )
    run = read(folder)
    texts = {(mark["kind"], mark["step"]): mark["text"] for mark in run.details()["marks"]}
    assert texts == {
        ("skipped", 7): "skipped: log-probabilities not finite; rows 20, 21, 22, 23, 24, 25, 26, 27 and 82 more",
        ("spike", 9): "the loss is far above that of the last steps (12.35); rows 5",
        ("rolled_back", 12): "rolled back to the last good checkpoint, checkpoint-10",
        ("not_finite", 20): "the evaluation has no result: log-probabilities are NaN or infinite; rows 1",
        ("skipped", 21): "skipped",
    }
    append(folder, *(line("skipped", step, cause="gradient", rows=[1], num_rows=1) for step in range(30, 500)))
    run.refresh()
    assert len(run.details()["marks"]) == MAX_MARKS
    assert run.summary()["happened"]["skipped"] == 472


def test_the_first_answers_are_kept_however_many_follow(tmp_path):
    answers = [{"Prompt": "p", "Policy": "base"}]
    folder = make_run(tmp_path, line("start", 0), line("samples", 0, set="eval", answers=answers))
    append(folder, *(line("samples", step, set="eval", answers=answers) for step in range(1, 400)))
    (found,) = read(folder).details()["samples"]
    assert (found["first"]["step"], found["last"]["step"]) == (0, 399)


def test_a_new_run_in_the_same_folder_replaces_the_old_and_keeps_its_first_evaluation(tmp_path):
    old = (line("start", 0), line("log", 1, loss=9.0), line("evaluate", 1, eval_loss=7.0), line("end", 1))
    folder = make_run(tmp_path, *old)
    run = read(folder)
    append(folder, line("evaluate", 0, eval_loss=4.0), line("start", 0), line("log", 2, loss=3.0))
    run.refresh()
    assert losses(run) == {2: 3.0}
    assert run.series(*EVERYTHING)["held_out"][""]["loss"] == {"steps": [0], "values": [4.0], "thinned": False}


def test_an_event_log_that_was_replaced_is_read_from_its_start(tmp_path):
    folder = make_run(tmp_path, line("start", 0), *(line("log", step, loss=9.0) for step in range(1, 9)))
    run = read(folder)
    make_run(folder, line("start", 0), line("log", 1, loss=1.0))
    assert run.refresh()
    assert losses(run) == {1: 1.0}


BROKEN = (
    b"\n", b"{\n", b"\xff\xfe\x00\n",
    b'{"event": "log", "step": 1e400, "loss": 1}\n',
    b'{"event": "log", "step": true, "loss": {"a": [1]}}\n',
    b'{"event": "log", "step": -5, "loss": 1}\n',
    b'{"event": "log", "step": ' + b"9" * 400 + b', "loss": 1}\n',
    b'{"event": "log", "step": 3, "loss": NaN, "nll_loss": Infinity, "or_loss": "x", "grad_norm": 1e999}\n',
    b'{"event": "log", "step": 3, "time": "yesterday", "loss": null}\n',
    b'{"event": ["log"], "step": 3}\n',
    b'{"event": "start", "step": 3, "settings": [1], "max_steps": "many", "model": {"a": 1}}\n',
    b'{"event": "pairs", "step": 3, "margins": 5, "inspected": "no"}\n',
    b'{"event": "samples", "step": 3, "answers": 7}\n',
    b"[" * 100_000 + b"\n",
    b'{"event": "log", "step": 3, "text": "' + b"x" * 10_000_000 + b'"}\n',
    b'{"event": "log", "step": 4, "loss": 2',
)  # fmt: skip


def test_no_line_of_an_event_log_breaks_the_reading(tmp_path):
    run = read(make_run(tmp_path, line("start", 0), line("log", 1, loss=3.0), *BROKEN))
    assert losses(run)[1] == 3.0
    json.dumps([run.summary(), run.series(*EVERYTHING), run.details()], allow_nan=False)


@given(st.lists(st.binary(max_size=60) | st.sampled_from(BROKEN[:13]), max_size=12))
def test_no_other_bytes_break_the_reading(tmp_path_factory, parts):
    run = read(make_run(tmp_path_factory.mktemp("run"), *parts))
    json.dumps([run.summary(), run.series(*EVERYTHING), run.details()], allow_nan=False)


def test_another_trainers_state_is_a_run_too(tmp_path):
    history = [{"step": step, "loss": 3.0 - step / 10, "rewards/accuracies": 0.5} for step in range(1, 9)]
    state = tmp_path / "trainer_state.json"
    state.write_text(json.dumps({"log_history": history, "global_step": 8, "max_steps": 8}))
    run = read(tmp_path)
    assert losses(run)[8] == 2.2
    assert run.summary()["state"] == "finished"
    state.write_text(json.dumps({"log_history": history[:2], "global_step": 2, "max_steps": 8}))
    assert run.refresh()
    assert sorted(losses(run)) == [1, 2]


def test_settings_come_from_run_yaml_or_the_event_log(tmp_path):
    folder = make_run(tmp_path, line("start", 0, settings={"beta": 0.1}))
    assert read(folder).details()["settings"]["beta"] == "0.1"
    (folder / "run.yaml").write_text('# Oddsmith\n\nbeta: 0.2  # given by --beta\nmodel_name_or_path: "a # b"\n')
    details = read(folder).details()
    assert details["settings"]["beta"] == "0.2"
    assert details["reproduce"].startswith("oddsmith train ")


def test_findings_are_those_of_diagnose(tmp_path):
    lines = [line("log", step, loss=3.0 + step / 10, nll_loss=3.0 + step / 10) for step in range(40)]
    findings = read(make_run(tmp_path, line("start", 0, max_steps=40), *lines)).details()["findings"]
    assert findings
    assert {"rule", "verdict", "metric", "step", "evidence", "meaning", "change"} <= findings[0].keys()


def test_a_hundred_thousand_points_are_read_and_sent_quickly(tmp_path):
    folder = make_run(tmp_path, line("start", 0), *(line("log", i, loss=3.0, grad_norm=1.0) for i in range(100_000)))
    run = read(folder)
    began = time.process_time()
    view = run.series(*EVERYTHING)
    append(folder, line("log", 100_000, loss=1.0))
    run.refresh()
    new = run.series(view["version"], view["generation"], -math.inf, math.inf)
    assert time.process_time() - began < 0.5
    assert len(view["training"]["loss"]["steps"]) <= MAX_POINTS
    assert new["training"]["loss"] == {"steps": [100_000], "values": [1.0], "thinned": False}
    near = run.series(None, None, 500, 700)
    assert near["training"]["loss"]["steps"] == list(range(500, 701))


def test_links_in_another_trainers_folder_are_not_followed(tmp_path):
    (tmp_path / "run" / "checkpoint-2").mkdir(parents=True)
    (tmp_path / "run" / "checkpoint-2" / "trainer_state.json").write_text('{"log_history": []}')
    (tmp_path / "secret.json").write_text('{"log_history": [{"step": 1, "loss": 42.0}]}')
    (tmp_path / "run" / "trainer_state.json").symlink_to(tmp_path / "secret.json")
    run = read(tmp_path / "run")
    assert run.summary()["state"] == "unreadable"
    assert "not followed" in run.summary()["problem"]
    assert not run.training


@pytest.mark.timeout(20)
@pytest.mark.parametrize("file", ["trainer_state.json", "checkpoint-2/trainer_state.json", "loss.csv", "logging.jsonl"])
@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_file_keeps_nobody_waiting(tmp_path, file, kind):
    (tmp_path / "run" / "checkpoint-2").mkdir(parents=True)
    SPECIAL[kind][0](tmp_path / "run" / file)
    run = read(tmp_path / "run")
    assert run.summary()["state"] == "unreadable"
    assert file in run.summary()["problem"] or "not followed" in run.summary()["problem"]


def test_findings_of_a_log_without_steps_are_those_of_diagnose(tmp_path):
    """Log lines are counted in place of steps, so their number says nothing about the length of the run."""
    log = tmp_path / "train.log"
    log.write_text("".join(f"{{'loss': {3 - 0.1 * line:.1f}}}\n" for line in range(12)), encoding="utf-8")
    findings = read(log).findings()
    assert findings == [finding.to_dict() for finding in judge(read_history(log))]
    assert "too_few_steps" not in {finding["rule"] for finding in findings}
