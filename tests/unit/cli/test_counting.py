"""The count of a piece of work without a terminal: plain lines with the rate and the time left."""

import re

from oddsmith.cli.terminal import counting as module
from oddsmith.cli.terminal.counting import counting


def test_a_plain_line_tells_the_rate_of_this_process_and_the_time_left(monkeypatch, capsys):
    now = iter([0.0, 12.0, 14.0, 30.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(now))
    with counting("answering", "answers", 400, done=100) as count:
        count(6)
        count(1)
        count(53)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "answering: 106 of 400 answers, 0.5 a second, 9:48 left",
        "answering: 160 of 400 answers, 2 a second, 2:00 left",
    ]


def test_where_the_end_is_not_known_there_is_no_time_left(monkeypatch, capsys):
    monkeypatch.setattr(module, "LINE_EVERY_S", 0.0)
    with counting("checking", "rows", None) as count:
        count(1000)
    assert re.fullmatch(r"checking: 1,000 rows, [\d,]+ a second\n", capsys.readouterr().err)
