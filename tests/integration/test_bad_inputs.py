"""Every row of docs/errors.md, done: one line says what is wrong and what to do, and nothing is changed or lost."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.bad_inputs import GROUPS
from tests.bad_inputs.__main__ import page
from tests.bad_inputs.case import GOOD, BadInput, lines
from tests.command import run_here, save_model
from tests.tiny import ragged_pairs

ROWS = [pytest.param(case, id=f"{case.done}: {case.words}"[:70]) for cases in GROUPS.values() for case in cases]
PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
MOST_LINES = 3  # what was begun may be said before what was wrong


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A model whose weights are never to be read."""
    folder = save_model(tmp_path_factory.mktemp("model") / "model")
    (folder / "model.safetensors").write_bytes(b"no weights")
    return folder


def contents(folder: Path) -> list[tuple[str, bytes]]:
    """All files; a checkpoint that was set aside is still there, and a lock is nobody's file."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("_lock"))
    return sorted((path.name, path.read_bytes()) for path in files)


@pytest.mark.parametrize("case", ROWS)
def test_it_is_answered(case: BadInput, model, tmp_path, monkeypatch, capsys):
    case.lay_out(tmp_path, model)
    monkeypatch.chdir(tmp_path)
    for package in case.without:
        monkeypatch.setitem(sys.modules, package, None)
    before = contents(tmp_path)
    outcome = run_here(capsys, *shlex.split(case.words))
    *said, answer = outcome.err.splitlines()
    assert re.fullmatch(pattern(f"error: {case.message}"), answer), answer
    assert outcome.code == case.code
    assert len(said) < MOST_LINES
    assert contents(tmp_path) == before


def pattern(message: str) -> str:
    """The message as a regular expression, with ``...`` for anything."""
    return re.escape(message).replace(re.escape("..."), ".*")


def test_the_page_is_printed_from_the_table():
    """Else: python -m tests.bad_inputs > docs/errors.md."""
    assert PAGE.read_text(encoding="utf-8") == page()


def test_no_row_stands_there_twice():
    told = [(group, case.done) for group, cases in GROUPS.items() for case in cases]
    assert len(set(told)) == len(told) >= 200


def test_a_bad_row_is_left_out_on_request(model, tmp_path, monkeypatch, capsys):
    """The run then goes on to the weights, which are the next thing wrong."""
    rows = lines(*ragged_pairs(4), {**GOOD, "chosen": None})
    BadInput("", "", "", {"pairs.jsonl": rows}).lay_out(tmp_path, model)
    monkeypatch.chdir(tmp_path)
    outcome = run_here(capsys, "train", "c.yaml", "--bad-rows", "drop")
    assert (outcome.code, "weights are damaged" in outcome.err) == (2, True)
