"""A message quotes what a file holds, and a file may hold anything."""

import pickle

import pytest

from oddsmith import errors
from oddsmith.cli.terminal.outcome import _say_unforeseen
from oddsmith.errors import DataError, MissingExtraError, NotAFileError, RowError, SaveError
from tests.test_architecture import ERRORS


@pytest.mark.parametrize(
    ("found", "shown"),
    [
        ("\x1b[2J\x1b]0;you\x07", r"\x1b[2J\x1b]0;you\x07"),
        ("caf\ud800", r"caf\ud800"),
        ("gpj\u202e.exe", r"gpj\u202e.exe"),
        ("a\n  b\n", "a b"),
        ("Größe 漢字 🙂", "Größe 漢字 🙂"),
    ],
)
def test_a_message_shows_what_it_quotes_and_moves_no_cursor(found, shown):
    assert str(DataError(f"column {found}")) == f"column {shown}"
    assert str(RowError("bad role", f"role {found}", 3, "a.jsonl")) == f"a.jsonl, row 3: bad role: role {shown}"


def test_a_message_keeps_where_it_is_and_what_to_do_when_what_it_quotes_is_endless():
    message = str(DataError(f"a.jsonl, line 7: found {'x' * 1_000_000}; expected text"))
    assert message.startswith("a.jsonl, line 7: found xxx")
    assert message.endswith("xxx; expected text")
    assert len(message) < 1_500


def test_a_class_with_a_message_of_its_own_is_shown_as_before():
    assert str(MissingExtraError("4-bit", "4bit")).endswith('install it with: pip install "oddsmith[4bit]"')


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_comes_whole_out_of_another_process(name):
    kind = getattr(errors, name)
    error = {
        "RowError": RowError("bad role", "role x", 3, "a.jsonl"),
        "UndecidedRow": errors.UndecidedRow("tie", "no answer is better", 3),
        "NotAFileError": NotAFileError("a.jsonl", "a pipe, not a file"),
        "MissingExtraError": MissingExtraError("4-bit", "4bit"),
        "SaveError": SaveError("no room", folder_is_gone=True),
        "DataError": DataError("no column").offering({"prompt": "question"}),
    }.get(name) or kind("what happened")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (kind, str(error), vars(error))


def test_an_error_that_was_not_foreseen_moves_no_cursor(capsys):
    _say_unforeseen(ValueError, ValueError("bad \x1b[2J\x1b]0;you\x07\nand more"), None)
    assert capsys.readouterr().err.splitlines()[0] == r"error: ValueError: bad \x1b[2J\x1b]0;you\x07"
