"""Every row of docs/errors.md: one line says what is wrong and what to do, and nothing is changed or lost."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.bad_inputs import GROUPS
from tests.bad_inputs.__main__ import page
from tests.bad_inputs.case import GOOD, BadInput, lines
from tests.command import Outcome, run_here, save_model
from tests.tiny import ragged_pairs

ROWS = [pytest.param(case, id=f"{case.done}: {case.words}"[:70]) for cases in GROUPS.values() for case in cases]
OF_DATA = ("Datasets", "Files of pairs", "Pairs", "Mixtures, splits and evaluation", "Tokenizers and chat templates")
IN_TRAINING = [
    pytest.param(case, id=f"{case.done}: {case.words}"[:70])
    for group in OF_DATA
    for case in GROUPS[group]
    if case.words.startswith("train ")
]
PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
MAX_LINES = 3  # progress may be printed before the error


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A model with unreadable weights: no row gets as far as reading them."""
    folder = save_model(tmp_path_factory.mktemp("model") / "model")
    (folder / "model.safetensors").write_bytes(b"no weights")
    return folder


def contents(folder: Path) -> list[tuple[str, bytes]]:
    """Return all files by name and content, without locks; a checkpoint that was set aside still counts."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("_lock"))
    return sorted((path.name, path.read_bytes()) for path in files)


def lay_out(case: BadInput, folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the files of a case into a folder, go there, and take away the packages that it lacks."""
    case.lay_out(folder, model)
    monkeypatch.chdir(folder)
    for package in case.without:
        monkeypatch.setitem(sys.modules, package, None)


@pytest.mark.parametrize("case", ROWS)
def test_it_is_answered(case: BadInput, model, tmp_path, monkeypatch, capsys):
    lay_out(case, tmp_path, model, monkeypatch)
    before = contents(tmp_path)
    outcome = run_here(capsys, *shlex.split(case.words))
    *said, answer = lines_before_the_command(outcome, case.words, case.flags)
    assert re.fullmatch(pattern(f"error: {case.message}"), answer), answer
    assert outcome.code == case.code
    assert len(said) < MAX_LINES
    assert contents(tmp_path) == before


@pytest.mark.parametrize("case", IN_TRAINING)
def test_a_dry_run_refuses_the_same(case: BadInput, model, tmp_path, monkeypatch, capsys):
    lay_out(case, tmp_path, model, monkeypatch)
    outcome = run_here(capsys, *shlex.split(case.words), "--dry-run")
    answer = lines_before_the_command(outcome, f"{case.words} --dry-run", case.flags)[-1]
    assert re.fullmatch(pattern(f"error: {case.message}"), answer), answer
    assert outcome.code == case.code


def lines_before_the_command(outcome: Outcome, words: str, flags: str) -> list[str]:
    """Return what was said without its last line, the command with the flags that it lacks, where that is offered."""
    *said, last = outcome.err.splitlines()
    if not flags:
        return [*said, last]
    assert last == f"  oddsmith {words} {flags}"
    return said


def pattern(message: str) -> str:
    """Return the message as a regular expression, with ``...`` for anything."""
    return re.escape(message).replace(re.escape("..."), ".*")


def test_the_page_is_printed_from_the_table():
    """To print it: python -m tests.bad_inputs > docs/errors.md."""
    assert PAGE.read_text(encoding="utf-8") == page()


def test_no_row_stands_there_twice():
    rows = [(group, case.done) for group, cases in GROUPS.items() for case in cases]
    assert len(set(rows)) == len(rows) >= 200


def test_a_bad_row_is_left_out_on_request(model, tmp_path, monkeypatch, capsys):
    """The run then goes on to the weights, which are broken too."""
    rows = lines(*ragged_pairs(4), {**GOOD, "chosen": None})
    BadInput("", "", "", {"pairs.jsonl": rows}).lay_out(tmp_path, model)
    monkeypatch.chdir(tmp_path)
    outcome = run_here(capsys, "train", "c.yaml", "--bad-rows", "drop")
    assert (outcome.code, "weights are damaged" in outcome.err) == (2, True)
