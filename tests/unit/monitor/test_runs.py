"""Which runs the monitor finds, and when it reads them again."""

import math
from pathlib import Path

import pytest

from oddsmith.diagnose.readers import read_history
from oddsmith.diagnose.rules import judge
from oddsmith.errors import DataError
from oddsmith.monitor import run as monitored
from oddsmith.monitor.runs import Runs, find_runs
from tests.unit.monitor.run_folders import append, line, make_run, read


def test_a_run_folder_with_checkpoints_and_a_quarantine_is_one_run(tmp_path):
    folder = make_run(tmp_path / "runs" / "one", line("start", 0), line("checkpoint", 10, path="checkpoint-10"))
    for name in ("checkpoint-10", "_quarantine/checkpoint-20"):
        (folder / name).mkdir(parents=True)
        (folder / name / "manifest.json").write_text("{")
        (folder / name / "trainer_state.json").write_text("{")
    assert find_runs(tmp_path / "runs") == find_runs(folder) == [folder]
    assert read(folder).summary()["state"] == "running"
    assert read(folder).summary()["checkpoint"] == 10


def test_a_folder_of_runs_is_searched_one_deep_without_following_links(tmp_path):
    for name in ("a", "b"):
        make_run(tmp_path / "runs" / name, line("start", 0))
    make_run(tmp_path / "elsewhere", line("start", 0))
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "runs" / "empty").mkdir()
    (tmp_path / "runs" / "linked-log").mkdir()
    (tmp_path / "runs" / "linked-log" / "events.jsonl").symlink_to(tmp_path / "elsewhere" / "events.jsonl")
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
    assert runs.summaries()[0]["state"] == "ended early"
    append(tmp_path / "new", line("start", 10, max_steps=100), line("log", 100, loss=1.0), line("end", 100))
    assert runs.summaries()[0]["state"] == "finished"


def test_a_path_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="nowhere is not there"):
        Runs([tmp_path / "nowhere"])


def test_files_of_other_trainers_are_read_again_only_when_they_changed(tmp_path, monkeypatch):
    opened: list[Path] = []
    read_bytes, read_history = monitored.read_bytes, monitored.read_history
    monkeypatch.setattr(monitored, "read_bytes", lambda path, *rest: opened.append(path) or read_bytes(path, *rest))
    monkeypatch.setattr(monitored, "read_history", lambda path: opened.append(path) or read_history(path))
    monkeypatch.setattr("oddsmith.monitor.runs.REFRESH_SECONDS", 0.0)
    logs = [tmp_path / "trainer_log.jsonl", tmp_path / "console.log"]
    logs[0].write_text('{"current_steps": 1, "loss": 3.0}\n')
    logs[1].write_text("{'loss': 3.0, 'step': 1}\n")
    runs = Runs(logs)
    runs.refresh()
    assert opened
    opened.clear()
    for _ in range(3):
        runs.refresh()
    assert opened == []
    with logs[1].open("a") as file:
        file.write("{'loss': 2.0, 'step': 2}\n")
    runs.refresh()
    assert opened == [logs[1]]
    steps = {run["name"].rpartition("/")[2]: run["step"] for run in runs.summaries()}
    assert steps == {log.name: i for i, log in enumerate(logs, 1)}


def long_run(folder: Path, steps: int) -> Path:
    """A run with a trend, noise, a NaN and a spike."""
    logs = []
    for step in range(1, steps + 1):
        noise = (step * 7919 % 101) / 1000
        loss = None if step == 777 else 3 - 2 * step / steps + noise
        figures = {"loss": loss, "nll_loss": loss, "log_odds_chosen": 2 * step / steps + noise}
        logs.append(line("log", step, **figures, grad_norm=90.0 if step == 5_000 else 1 + noise))
    return make_run(folder, line("start", 0, max_steps=steps, settings={"learning_rate": 1e-5}), *logs)


def test_a_figure_whose_latest_value_is_not_finite_is_said_to_be_so(tmp_path):
    logs = [line("log", 1, loss=2.0, nll_loss=None), line("log", 2, loss=None, nll_loss=1.0)]
    (row,) = Runs([make_run(tmp_path / "run", line("start", 0), *logs)]).table()
    assert row["figures"] == {"loss": "not finite", "nll_loss": 1.0}


@pytest.mark.parametrize(
    ("content", "shown"),
    [(b"x" * 300, "x" * 100), (b"first\n" + b"y" * 200, "y" * 100), (b"z" * 150 + b"\nlast\n", "last\n")],
)
def test_the_end_of_a_long_console_is_shown(tmp_path, monkeypatch, content, shown):
    monkeypatch.setattr("oddsmith.monitor.run.MAX_CONSOLE_BYTES", 100)
    folder = make_run(tmp_path / "run", line("start", 0))
    (folder / "_console.log").write_bytes(content)
    assert read(folder).console() == shown


def test_a_long_event_log_is_read_in_parts_between_the_answers(tmp_path, monkeypatch):
    monkeypatch.setattr("oddsmith.monitor.runs.READING_SECONDS", 0.0)
    runs = Runs([long_run(tmp_path / "run", 10_000)])
    (first,) = runs.summaries()
    assert (first["state"], first["step"] < 4_000) == ("reading", True)
    assert runs.details(first["id"])["findings"] == []
    (run,) = runs.all()
    whole = read(tmp_path / "run")
    assert not run.is_reading
    assert run.summary()["step"] == 10_000
    everything = (None, None, -math.inf, math.inf)
    assert run.series(*everything)["training"] == whole.series(*everything)["training"]
    assert run.findings() == whole.findings() != []


def test_the_findings_of_a_sample_are_those_of_diagnose(tmp_path, monkeypatch):
    monkeypatch.setattr("oddsmith.monitor.series.CAPACITY", 4_000)
    monkeypatch.setattr("oddsmith.monitor.series.SAMPLE", 1_000)
    folder = long_run(tmp_path / "run", 20_000)
    found = {one["rule"]: one for one in read(folder).findings()}
    expected = {finding.rule: finding.to_dict() for finding in judge(read_history(folder))}
    assert found.keys() == expected.keys() != set()
    for rule, finding in found.items():
        assert [finding[name] for name in ("verdict", "metric", "step")] == [
            expected[rule][name] for name in ("verdict", "metric", "step")
        ]
