"""Names and notes of runs: kept beside the run folders, bounded, and read again when they change."""

import errno
import json
import os

import pytest

from oddsmith.errors import DataError
from oddsmith.monitor.notes import MAX_NAME, MAX_NOTE, NOTES_FILE, Note, Notes, clean_note
from oddsmith.monitor.runs import Runs
from tests.unit.monitor.run_folders import line, make_run


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setattr("oddsmith.monitor.runs.REFRESH_SECONDS", 0.0)
    for name in ("a", "b"):
        make_run(tmp_path / name, line("start", 0), line("log", 1, loss=1.0))
    return Runs([tmp_path])


def titles(runs):
    return {run["name"]: (run["title"], run["note"]) for run in runs.summaries()}


def test_a_note_is_kept_beside_the_runs_and_found_again(tmp_path, runs):
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a", tmp_path / "a" / "events.jsonl")}
    (first,) = (run["id"] for run in runs.summaries() if run["name"] == "a")
    version = runs.refresh()
    assert runs.write_note(first, Note("the one to keep", "line\nline"))
    assert titles(runs) == {"a": ("the one to keep", "line\nline"), "b": ("b", "")}
    assert runs.refresh() > version
    assert titles(Runs([tmp_path / "a"])) == {"a": ("the one to keep", "line\nline")}
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert [entry.name for entry in sorted(tmp_path.iterdir())] == [NOTES_FILE, "a", "b"]
    (tmp_path / NOTES_FILE).write_text(json.dumps({"notes": {"b": {"name": "of another monitor"}}}))
    assert titles(runs) == {"a": ("a", ""), "b": ("of another monitor", "")}
    assert runs.write_note(first, Note())
    assert json.loads((tmp_path / NOTES_FILE).read_text())["notes"].keys() == {"b"}
    assert not runs.write_note("0" * 12, Note("x"))


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"notes": []}', '{"notes": {"a": 1, "b": {"name": 2, "note": [3]}}}', "\x00", "{" * 9999],
)
def test_an_odd_file_of_notes_is_no_notes(tmp_path, runs, content):
    (tmp_path / NOTES_FILE).write_text(content)
    assert titles(runs) == {"a": ("a", ""), "b": ("b", "")}


def test_a_damaged_file_of_notes_is_not_overwritten(tmp_path):
    (tmp_path / NOTES_FILE).write_text('{"notes": {"a": {"name": "cut off')
    with pytest.raises(DataError, match="damaged; mend or remove it"):
        Notes(tmp_path).write(tmp_path / "b", Note("new", ""))
    assert "cut off" in (tmp_path / NOTES_FILE).read_text()


def test_a_file_of_notes_that_cannot_be_read_is_not_overwritten(tmp_path, runs, monkeypatch):
    (first, *_) = (run["id"] for run in runs.summaries())
    (tmp_path / NOTES_FILE).write_text(json.dumps({"notes": {"a": {"name": "kept"}}}))
    assert titles(runs)["a"] == ("kept", "")
    before = (tmp_path / NOTES_FILE).read_text()

    def refuse(*args, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as unreadable:
        unreadable.setattr("oddsmith.monitor.notes.open_file", refuse)
        os.utime(tmp_path / NOTES_FILE, (1, 1))
        with pytest.raises(PermissionError):
            runs.write_note(first, Note("new"))
        assert titles(runs)["a"] == ("kept", "")
    assert (tmp_path / NOTES_FILE).read_text() == before
    (tmp_path / NOTES_FILE).write_text(json.dumps({"notes": {"a": {"name": "again"}}}))
    assert titles(runs)["a"] == ("again", "")


@pytest.mark.parametrize("shown", ["run/events.jsonl", "run/checkpoint-5", "run/checkpoint-5/trainer_state.json"])
def test_the_notes_of_a_file_in_a_run_folder_are_those_of_the_run(tmp_path, shown):
    run = make_run(tmp_path / "run", line("start", 0), line("log", 1, loss=1.0))
    (run / "checkpoint-5").mkdir()
    (run / "checkpoint-5" / "trainer_state.json").write_text('{"log_history": [{"step": 1, "loss": 1.0}]}')
    before = sorted(path.relative_to(run) for path in run.rglob("*"))
    runs = Runs([tmp_path / shown])
    (found,) = runs.summaries()
    assert runs.write_note(found["id"], Note("named"))
    assert [one["title"] for one in runs.summaries()] == ["named"]
    assert [one["title"] for one in Runs([tmp_path]).summaries()] == ["named"]
    assert sorted(path.relative_to(run) for path in run.rglob("*")) == before


def test_notes_that_would_be_too_long_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("oddsmith.monitor.notes.MAX_NOTES_BYTES", 200)
    notes = Notes(tmp_path)
    notes.write(tmp_path / "a", Note("kept", ""))
    with pytest.raises(DataError, match="shorten other notes"):
        notes.write(tmp_path / "b", Note("x" * 150, ""))
    notes.refresh()
    assert notes.of(tmp_path / "a") == Note("kept", "")


def test_a_link_in_place_of_the_notes_is_not_followed(tmp_path, runs):
    elsewhere = tmp_path.parent / f"{tmp_path.name}-elsewhere.json"
    elsewhere.write_text(json.dumps({"notes": {"a": {"name": "from elsewhere"}}}))
    (tmp_path / NOTES_FILE).symlink_to(elsewhere)
    assert titles(runs)["a"] == ("a", "")
    notes = Notes(tmp_path)
    notes.write(tmp_path / "a", Note("mine", ""))
    assert "from elsewhere" in elsewhere.read_text()
    assert not (tmp_path / NOTES_FILE).is_symlink()


def test_what_is_kept_is_bounded(tmp_path, monkeypatch):
    assert clean_note({"name": "n" * 999, "note": "x" * 99_999}) == Note("n" * MAX_NAME, "x" * MAX_NOTE)
    assert clean_note({"name": None, "note": "\udcff"}) == Note("", "?")
    monkeypatch.setattr("oddsmith.monitor.notes.MAX_NOTES", 3)
    notes = Notes(tmp_path)
    for name in "abcde":
        notes.write(tmp_path / name, Note(name, ""))
    assert json.loads((tmp_path / NOTES_FILE).read_text())["notes"].keys() == set("cde")


def test_a_name_that_is_no_utf_8_has_notes(tmp_path):
    run, notes = tmp_path / os.fsdecode(b"run\xff"), Notes(tmp_path)
    notes.write(run, Note("named", ""))
    notes.refresh()
    assert notes.of(run) == Note("named", "")
