"""The log of answers and scores: nothing is lost, nothing twice, and no other settings go on in it."""

import json

import pytest

from oddsmith.errors import ConfigError, DataError, NotAFileError, SaveError
from oddsmith.making.answers.drawing import Unanswered
from oddsmith.making.log import Log
from oddsmith.making.records import Answer, Score, Verdict
from tests.faults import file_size_limit

SETTINGS = {"--samples": "2", "--temperature": "0.8"}
HOSTILE = "\x1b]0;owned\x07\u202e" + "\ud800" + "x" * 1_000_000 + "你好\u2028\n"


def answer(sample=0, text="A", question="q"):
    return Answer(question, "m", sample, text, 3, True)


def contents(path):
    with Log(path, SETTINGS) as log:
        return log.answers, log.unanswered, log.scores


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "new" / "pairs.log.jsonl"
    with Log(path, SETTINGS) as log:
        log.add(answer())
        log.add(answer(text="another time"))  # is there already
        log.add(Unanswered("q", "m", 1, "too long"))
        log.add(Answer("r", "m", 0, "B"))
        log.add_scores("rule", "b", [answer()], [Score(0.5, "half")])
    return path


def test_what_was_kept_is_there(path):
    answers, unanswered, scores = contents(path)
    assert answers == {("q", "m", 0): answer(), ("r", "m", 0): Answer("r", "m", 0, "B")}
    assert unanswered == {("q", "m", 1): Unanswered("q", "m", 1, "too long")}
    assert scores == {"rule": {("q", "m", 0): Score(0.5, "half")}}
    with Log(path, SETTINGS) as log:
        assert log.known("m") == {("q", 0), ("q", 1), ("r", 0)}
        assert log.known("other") == set()


def test_a_later_score_counts(path):
    with Log(path, SETTINGS) as log:
        log.add_scores("rule", "b", [answer()], [Score(None, "unsure")])
    assert contents(path)[2] == {"rule": {("q", "m", 0): Score(None, "unsure")}}


def test_verdicts_are_there_again(path):
    verdicts = [Verdict("ab", "A"), Verdict("ba", None, "unreadable"), Verdict("a", 7)]
    with Log(path, SETTINGS) as log:
        for one in verdicts:
            log.add_verdict("judge:m", "b", "q", one)
        there = log.verdicts
    with Log(path, SETTINGS) as log:
        assert log.verdicts == there == {("judge:m", "b", "q"): {one.shown: one for one in verdicts}}


def test_whatever_is_cut_off_at_the_end_the_rest_counts_and_goes_on(path):
    data, whole = path.read_bytes(), contents(path)
    ends = [place + 1 for place, byte in enumerate(data) if byte == ord("\n")]
    for size in {0, 1, len(data) - 1, *ends, *(end + 9 for end in ends[:-1]), *(end - 1 for end in ends)}:
        path.write_bytes(data[:size])
        lines = sum(end <= size for end in ends)
        answers, unanswered, scores = contents(path)
        assert len(answers) + len(unanswered) + len(scores) == max(0, lines - 1)
        with Log(path, SETTINGS) as log:
            for one in (*whole[0].values(), *whole[1].values()):
                log.add(one)
            log.add_scores("rule", "b", [answer()], [Score(0.5, "half")])
        assert contents(path) == whole
        assert all(json.loads(line) for line in path.read_text().splitlines())


def test_hostile_answers_come_back_and_the_file_stays_plain_text(path):
    with Log(path, SETTINGS) as log:
        log.add(answer(7, HOSTILE))
    assert contents(path)[0]["q", "m", 7].text == HOSTILE.replace("\ud800", "?")
    assert path.read_bytes().isascii()
    assert b"\x1b" not in path.read_bytes()


def test_one_process_at_a_time(path):
    with Log(path, SETTINGS), pytest.raises(ConfigError, match="another process is making these pairs"):
        Log(path, SETTINGS)
    contents(path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**SETTINGS, "--samples": "4"}, "was begun with --samples 2, and this is 4; give the same again to go on"),
        ({"--samples": "2"}, "was begun with --temperature 0.8, and this is none"),
        ({**SETTINGS, "prompts": "9 (ab)"}, "was begun with prompts none, and this is 9 (ab)"),
    ],
)
def test_other_settings_are_refused_and_nothing_is_changed(path, settings, message):
    before = path.read_bytes()
    with pytest.raises(ConfigError) as caught:
        Log(path, settings)
    assert message in str(caught.value)
    assert path.read_bytes() == before
    contents(path)


@pytest.mark.parametrize(
    "line",
    [
        "{}", "[]", "null", "no JSON", '{"event": "odd"}', '{"event": "answer"}', "[" * 200 + "]" * 200,
        '{"event": "answer", "question": "q", "model": "m", "sample": true, "text": "t"}',
        '{"event": "answer", "question": "q", "model": "m", "sample": 0, "text": 3}',
        '{"event": "answer", "question": ["q"], "model": "m", "sample": 0, "text": "t"}',
        '{"event": "score", "question": "q", "model": "m", "sample": 0, "judge": 3, "value": 1}',
        '{"event": "score", "question": "q", "model": "m", "sample": 0, "judge": "j", "value": "1"}',
        '{"event": "answer", "question": "q", "model": "m", "sample": 0, "text": "t", "more": 1}',
    ],
)  # fmt: skip
def test_a_line_of_something_else_is_named(path, line):
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], line, *lines[2:]]) + "\n")
    with pytest.raises(DataError, match="line 3: is no line of a log of `oddsmith data make`"):
        Log(path, SETTINGS)


def test_another_file_is_not_written_to(tmp_path):
    path = tmp_path / "pairs.log.jsonl"
    path.write_text('{"prompt": "p"}\n')
    with pytest.raises(DataError, match="line 1: is no line of a log"):
        Log(path, SETTINGS)
    assert path.read_text() == '{"prompt": "p"}\n'
    link = tmp_path / "link.log.jsonl"
    link.symlink_to(path)
    with pytest.raises(NotAFileError):
        Log(link, SETTINGS)


def test_a_full_disk_leaves_whole_lines(path):
    before = contents(path)
    too_large = pytest.raises(SaveError, match=r"cannot be written \(file too large\); what is in it stays")
    with Log(path, SETTINGS) as log, file_size_limit(path.stat().st_size + 500), too_large:
        log.add(answer(5, "x" * 1000))
    assert contents(path) == before
