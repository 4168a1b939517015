"""What the monitor reads of run folders: incrementally, bounded, and unmoved by anything that stands in them."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oddsmith.diagnose.history import Series
from oddsmith.errors import DataError
from oddsmith.monitor.run import Run
from oddsmith.monitor.runs import Runs, find_runs
from oddsmith.monitor.series import MOST_POINTS, GrowingSeries, thin
from oddsmith.monitor.tail import LONGEST_LINE_BYTES, Tail

EVERYTHING = (None, None, -math.inf, math.inf)


def line(event: str, step: int, **fields) -> bytes:
    return json.dumps({"event": event, "time": time.time(), "step": step, **fields}).encode() + b"\n"


def make_run(folder: Path, *lines: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "events.jsonl").write_bytes(b"".join(lines))
    return folder


def append(folder: Path, *lines: bytes) -> None:
    with (folder / "events.jsonl").open("ab") as file:
        file.write(b"".join(lines))


def read(folder: Path) -> Run:
    run = Run(folder)
    run.refresh()
    return run


def losses(run: Run) -> dict[int, float]:
    view = run.series(*EVERYTHING)["training"]["loss"]
    return dict(zip(view["steps"], view["values"], strict=True))


def test_a_half_written_line_waits_for_its_end(tmp_path):
    file = tmp_path / "lines"
    tail = Tail(file)
    assert list(tail.new_lines()) == []
    file.write_bytes(b"one\ntw")
    assert list(tail.new_lines()) == [b"one"]
    file.write_bytes(b"one\ntwo\n")
    assert list(tail.new_lines()) == [b"two"]
    assert list(tail.new_lines()) == []


def test_a_line_that_is_too_long_is_passed_over_even_while_it_grows(tmp_path):
    file = tmp_path / "lines"
    tail = Tail(file)
    file.write_bytes(b"a\n" + b"x" * (3 * LONGEST_LINE_BYTES))
    assert list(tail.new_lines()) == [b"a"]
    with file.open("ab") as more:
        more.write(b"x" * LONGEST_LINE_BYTES)
    assert list(tail.new_lines()) == []
    with file.open("ab") as more:
        more.write(b"yz\nb\n" + b"w" * (LONGEST_LINE_BYTES + 1) + b"\nc\n")
    assert list(tail.new_lines()) == [b"b", b"c"]


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to(path.parent / "secret")])
def test_neither_pipes_nor_links_are_read(tmp_path, make):
    (tmp_path / "secret").write_bytes(b"secret\n")
    make(tmp_path / "lines")
    assert list(Tail(tmp_path / "lines").new_lines()) == []


def test_thinning_keeps_the_extremes():
    steps, values = np.arange(100_000.0), np.sin(np.arange(100_000.0) / 5000)
    values[77_777] = 9.0
    values[33_333] = math.nan
    kept_steps, kept_values = thin(steps, values)
    assert len(kept_steps) <= MOST_POINTS
    assert (np.diff(kept_steps) >= 0).all()
    assert 77_777 in kept_steps
    assert np.nanmin(kept_values) == np.nanmin(values)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.data())
def test_a_page_of_any_version_plus_what_is_new_is_the_whole(sizes, data):
    series, first = GrowingSeries(), 0
    for version, size in enumerate(sizes, 1):
        steps = np.arange(first, first + size, dtype=float)
        assert not series.append(Series(steps, steps * 2), version)
        first += size
    version = data.draw(st.integers(0, len(sizes)))
    had = sum(sizes[:version])
    view = series.view(after=version)
    assert ([] if view is None else view["steps"]) == list(range(had, first))


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


def test_a_new_run_in_the_same_folder_replaces_the_old_and_keeps_its_first_evaluation(tmp_path):
    folder = make_run(
        tmp_path, line("start", 0), line("log", 1, loss=9.0), line("evaluate", 1, eval_loss=7.0), line("end", 1)
    )
    run = read(folder)
    append(folder, line("evaluate", 0, eval_loss=4.0), line("start", 0), line("log", 2, loss=3.0))
    run.refresh()
    assert losses(run) == {2: 3.0}
    assert run.series(*EVERYTHING)["held_out"][""]["loss"] == {"steps": [0], "values": [4.0], "thinned": False}


def test_a_diary_that_was_replaced_is_read_from_its_start(tmp_path):
    folder = make_run(tmp_path, line("start", 0), *(line("log", step, loss=9.0) for step in range(1, 9)))
    run = read(folder)
    make_run(folder, line("start", 0), line("log", 1, loss=1.0))
    assert run.refresh()
    assert losses(run) == {1: 1.0}


BROKEN = (
    b"\n",
    b"{\n",
    b"\xff\xfe\x00\n",
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
)


def test_nothing_in_a_diary_breaks_the_reading(tmp_path):
    run = read(make_run(tmp_path, line("start", 0), line("log", 1, loss=3.0), *BROKEN))
    assert losses(run)[1] == 3.0
    json.dumps([run.summary(), run.series(*EVERYTHING), run.details()], allow_nan=False)


@given(st.lists(st.binary(max_size=60) | st.sampled_from(BROKEN[:13]), max_size=12))
def test_nor_does_any_other_text(tmp_path_factory, parts):
    run = read(make_run(tmp_path_factory.mktemp("run"), *parts))
    json.dumps([run.summary(), run.series(*EVERYTHING), run.details()], allow_nan=False)


def test_a_folder_of_runs_is_searched_one_deep_without_following_links(tmp_path):
    for name in ("a", "b"):
        make_run(tmp_path / "runs" / name, line("start", 0))
    make_run(tmp_path / "elsewhere", line("start", 0))
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "runs" / "empty").mkdir()
    (tmp_path / "runs" / "linked-diary").mkdir()
    (tmp_path / "runs" / "linked-diary" / "events.jsonl").symlink_to(tmp_path / "elsewhere" / "events.jsonl")
    assert {path.name for path in find_runs(tmp_path / "runs")} == {"a", "b"}
    assert find_runs(tmp_path / "runs" / "a") == [tmp_path / "runs" / "a"]


def test_a_run_that_begins_later_appears(tmp_path, monkeypatch):
    monkeypatch.setattr("oddsmith.monitor.runs.REFRESH_SECONDS", 0.0)
    runs = Runs([tmp_path])
    assert runs.summaries() == []
    make_run(tmp_path / "new", line("start", 0, max_steps=100), line("log", 5, loss=1.0), line("log", 10, loss=1.0))
    (found,) = runs.summaries()
    assert (found["name"], found["state"], found["step"], found["max_steps"]) == ("new", "running", 10, 100)
    append(tmp_path / "new", line("end", 10))
    assert runs.summaries()[0]["state"] == "finished"


def test_a_path_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="nowhere is not there"):
        Runs([tmp_path / "nowhere"])


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


def test_settings_come_from_run_yaml_or_the_diary(tmp_path):
    folder = make_run(tmp_path, line("start", 0, settings={"beta": 0.1}))
    assert read(folder).details()["settings"]["beta"] == "0.1"
    (folder / "run.yaml").write_text('# Oddsmith\n\nbeta: 0.2  # given by --beta\nmodel_name_or_path: "a # b"\n')
    details = read(folder).details()
    assert details["settings"]["beta"] == "0.2"
    assert details["reproduce"].startswith("oddsmith train ")


def test_findings_are_those_of_diagnose(tmp_path):
    values = [3.0 + step / 10 for step in range(40)]
    folder = make_run(
        tmp_path, line("start", 0, max_steps=40), *(line("log", i, loss=v, nll_loss=v) for i, v in enumerate(values))
    )
    findings = read(folder).details()["findings"]
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
    assert len(view["training"]["loss"]["steps"]) <= MOST_POINTS
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
