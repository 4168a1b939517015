"""``make release-check``: what it compares, and that it uses every command. Its own steps take ten minutes."""

import re
import shutil

import pytest

from oddsmith import __version__
from oddsmith.cli.command_table import COMMANDS
from scripts import release_check
from scripts.release_check import (
    EXTRAS,
    FILES,
    HINT,
    NEED_EXTRAS,
    USES,
    Fault,
    check_actions,
    check_version,
    fault_of,
    keep,
)
from tests.docs_blocks import ROOT, commands
from tests.unit.test_docs_blocks import read_words


def test_it_uses_every_command_with_words_that_exist(tmp_path, monkeypatch):
    assert USES.keys() == COMMANDS.keys() > EXTRAS.keys()
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    for use in (*USES.values(), *NEED_EXTRAS):
        with monkeypatch.context() as patch:
            read_words(use.split(), patch)


def test_a_hint_is_read_as_it_is_printed():
    line = 'error: oddsmith tune needs an optional dependency; install it with: pip install "oddsmith[tune]"'
    assert HINT.search(line)[1] == "tune"
    assert HINT.search("error: optim needs an optional dependency; install it with: pip install galore-torch") is None


@pytest.mark.parametrize(
    ("extra", "code", "said", "fault"),
    [
        ("tune", 2, 'install it with: pip install "oddsmith[tune]"', ""),
        ("tune", 2, 'install it with: pip install "oddsmith[gguf]"', "names the extra gguf, not tune"),
        ("tune", 0, "done", "names the extra None, not tune"),
        (None, 2, 'install it with: pip install "oddsmith[gguf]"', "names the extra gguf, not None"),
        (None, 0, "done", ""),
        (None, 2, "error: no", "ended with 2: error: no"),
    ],
)
def test_a_command_has_to_name_the_extra_that_it_needs(tmp_path, extra, code, said, fault):
    program = tmp_path / "venv" / "bin" / "oddsmith"
    program.parent.mkdir(parents=True)
    (tmp_path / "bare").mkdir()
    program.write_text(f"#!/bin/sh\necho '{said}' >&2\nexit {code}\n", encoding="utf-8")
    program.chmod(0o755)
    found = fault_of(tmp_path, "tune recipe.yaml", extra)
    assert fault in found
    assert bool(fault) == bool(found)


def test_without_actionlint_the_workflows_are_left_out_but_in_continuous_integration(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CI", raising=False)
    assert check_actions(tmp_path) == "left out: actionlint is not installed"
    monkeypatch.setenv("CI", "true")
    with pytest.raises(Fault, match="actionlint is not installed; install it with"):
        check_actions(tmp_path)


def test_older_files_make_way_for_those_that_were_checked(tmp_path):
    built, kept = tmp_path / "built", tmp_path / "dist"
    for name in (
        "dist/oddsmith-0.0.9.tar.gz",
        "dist/oddsmith-0.0.9-py3-none-any.whl",
        "dist/model/old.whl",
        "dist/notes",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (built / "model").mkdir(parents=True)
    (built / "oddsmith-0.1.0.tar.gz").touch()
    (built / "model" / "new.whl").touch()
    keep(built, kept)
    left = {file.relative_to(kept).as_posix() for file in kept.rglob("*") if file.is_file()}
    assert left == {"oddsmith-0.1.0.tar.gz", "model/new.whl", "notes"}


def test_the_first_pages_begin_with_the_install_line_that_it_follows():
    assert any(line.startswith('pip install "oddsmith[') for line in commands("docs/start/install.md"))
    page = commands("docs/start/first-run.md")
    assert [word for line in page if line.startswith("oddsmith") for word in line.split()[1:2]] == [
        "data", "train", "diagnose", "eval", "chat", "compare", "export", "chat"
    ]  # fmt: skip


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A copy of the files that name the version, with nothing unreleased."""
    (tmp_path / "docs").mkdir()
    for name in ("CHANGELOG.md", "CITATION.cff", "docs/citing.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    log = (tmp_path / "CHANGELOG.md").read_text(encoding="utf-8")
    cut = re.sub(r"(## \[Unreleased\]\n\n).*?(?=^## \[\d)", r"\1", log, flags=re.DOTALL | re.MULTILINE)
    (tmp_path / "CHANGELOG.md").write_text(cut, encoding="utf-8")
    monkeypatch.setattr(release_check, "ROOT", tmp_path)
    return tmp_path


def test_this_tree_names_one_version(tree):
    assert check_version().startswith(f"{__version__} of 20")


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("CHANGELOG.md", f"## [{__version__}]", "## [9.9.9]", "CHANGELOG.md begins with .*9.9.9"),
        ("CHANGELOG.md", "[Unreleased]\n", "[Unreleased]\n\n- A change.\n", "lines under Unreleased.*- A change."),
        ("CITATION.cff", f"version: {__version__}", "version: 9.9.9", "lacks the line version:"),
        ("CITATION.cff", "date-released: 20", "date-released: 19", "lacks the line date-released:"),
        ("docs/citing.md", f"{{{__version__}}}", "{9.9.9}", "docs/citing.md lacks"),
    ],
)
def test_another_version_is_a_fault(tree, file, old, new, message):
    text = (tree / file).read_text(encoding="utf-8")
    assert old in text
    (tree / file).write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(Fault, match=message):
        check_version()
