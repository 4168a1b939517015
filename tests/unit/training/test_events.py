"""The event log: every line stands alone, and a failed write ends no run."""

import json

from oddsmith.system.run_folder import EVENTS_FILE, append_event, read_events
from tests.faults import file_size_limit


def test_an_event_is_one_line_of_strict_json(tmp_path):
    append_event(tmp_path, "log", 3, loss=float("nan"), text="two\nlines")
    (line,) = (tmp_path / EVENTS_FILE).read_text(encoding="utf-8").splitlines()
    event = json.loads(line)
    assert event.pop("time") > 1.7e9
    assert event == {"event": "log", "step": 3, "loss": None, "text": "two\nlines"}


def test_a_full_disk_costs_a_line_and_not_the_run(tmp_path, caplog):
    append_event(tmp_path, "log", 1)
    with file_size_limit((tmp_path / EVENTS_FILE).stat().st_size + 20):
        append_event(tmp_path, "log", 2, text="x" * 100)
        append_event(tmp_path, "log", 3, text="x" * 100)
    assert (tmp_path / EVENTS_FILE).read_text(encoding="utf-8").splitlines()[1].startswith('{"event": "log"')
    append_event(tmp_path, "log", 4)
    append_event(tmp_path, "log", 5)
    assert [event["step"] for event in read_events(tmp_path)] == [1, 4, 5]
    message = f"{tmp_path / EVENTS_FILE}: not written (file too large); the run goes on, and its event log has a gap"
    assert [record.getMessage() for record in caplog.records] == [message]


def test_a_line_behind_one_that_was_cut_off_stands_alone(tmp_path):
    append_event(tmp_path, "log", 1)
    with (tmp_path / EVENTS_FILE).open("a", encoding="utf-8") as file:
        file.write('{"event": "log", "st')
    append_event(tmp_path, "log", 2)
    assert [event["step"] for event in read_events(tmp_path)] == [1, 2]
    assert (tmp_path / EVENTS_FILE).read_bytes().count(b"\n") == 3


def test_a_removed_run_folder_costs_only_the_event_log(tmp_path, caplog):
    append_event(tmp_path / "gone", "log", 1)
    assert "events.jsonl: not written (no such file or directory); the run goes on" in caplog.text
    assert not (tmp_path / "gone").exists()
