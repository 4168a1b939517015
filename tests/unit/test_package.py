"""The wheel and the sdist: what is in them, and what an index would show of them."""

import ast
import io
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest

import oddsmith
from oddsmith.model.loading.builtin import PACKAGES
from tests.docs_blocks import ROOT

pytest.importorskip("hatchling", reason="hatchling, of the extra test, is not installed")

ADDRESS = "https://example.org/someone/oddsmith"
SOURCE = ROOT / "src"
DATA = {  # what is no Python, and has to be there
    "oddsmith/py.typed",
    "oddsmith/cli/parsing/schema.json",
    "oddsmith/data/builtin/pairs_train.jsonl",
    "oddsmith/data/builtin/pairs_heldout.jsonl",
    "oddsmith/monitor/page/index.html",
    "oddsmith/monitor/page/charts.js",
    "oddsmith/monitor/page/style.css",
    "oddsmith/inference/compare/page.html",
    "oddsmith/recipes/smollm2-135m-lora.yaml",
}
RELATIVE = re.compile(r"\]\((?!https?://)[^)]*\)")


def built(kind: str, folder: Path, address: str) -> Path:
    words = [sys.executable, "-m", "hatchling", "build", "--target", kind, "--directory", str(folder)]
    environment = {**os.environ, "ODDSMITH_ADDRESS": address}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return next(folder.iterdir())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> dict[str, bytes]:
    with zipfile.ZipFile(built("wheel", tmp_path_factory.mktemp("wheel"), ADDRESS)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> dict[str, bytes]:
    with tarfile.open(built("sdist", tmp_path_factory.mktemp("sdist"), ADDRESS)) as archive:
        files = ((member, archive.extractfile(member)) for member in archive)
        return {member.name.partition("/")[2]: (file or io.BytesIO()).read() for member, file in files}


def metadata(files: dict[str, bytes]) -> Message:
    return message_from_bytes(next(files[name] for name in files if name.endswith((".dist-info/METADATA", "PKG-INFO"))))


def test_the_wheel_has_the_package_and_nothing_else(wheel):
    """No tests, no documentation: an installation imports as ``oddsmith`` and has no other folder."""
    stated = f"oddsmith-{oddsmith.__version__}.dist-info"
    packaged = {name for name in wheel if not name.startswith(stated)}
    files = {path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*") if path.is_file()}
    assert packaged == {name for name in files if "__pycache__" not in name and ".egg-info/" not in name}
    assert packaged >= DATA
    assert wheel[f"{stated}/licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    assert b"oddsmith = oddsmith.cli.main:main" in wheel[f"{stated}/entry_points.txt"]


def test_the_sdist_has_what_builds_tests_and_documents_it(sdist):
    needed = {"pyproject.toml", "hatch_build.py", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "Makefile",
              "constraints.txt", "tests/unit/test_package.py", "docs/index.md", "src/oddsmith/py.typed",
              "packages/smollm2/pyproject.toml"}  # fmt: skip
    assert needed - set(sdist) == set()
    assert [name for name in sdist if re.search(r"__pycache__|\.pyc$|\.gguf$|^\.venv|^runs/", name)] == []


def test_an_index_would_show_readme_with_links_that_lead_somewhere(wheel, sdist):
    stated = metadata(wheel)
    page = stated.get_payload()
    assert RELATIVE.findall(page) == []
    assert "[docs](docs/index.md)" in (ROOT / "README.md").read_text()
    assert f"[docs]({ADDRESS}/blob/v{oddsmith.__version__}/docs/index.md)" in page
    assert f"]({ADDRESS}/raw/v{oddsmith.__version__}/docs/monitor-light.png)" in page
    assert f"]({ADDRESS}/blob/v{oddsmith.__version__}/README.md#the-demo)" in page
    assert stated["Description-Content-Type"] == "text/markdown"
    addresses = dict(entry.split(", ") for entry in stated.get_all("Project-URL"))
    assert {"Homepage", "Documentation", "Source", "Issues", "Changelog"} == set(addresses)
    assert all(address.startswith(ADDRESS) for address in addresses.values())
    assert metadata(sdist).get_payload() == page


def test_without_an_address_nothing_is_invented(tmp_path):
    with zipfile.ZipFile(built("wheel", tmp_path, "")) as archive:
        stated = metadata({name: archive.read(name) for name in archive.namelist()})
    assert stated.get_all("Project-URL") is None
    assert RELATIVE.findall(stated.get_payload()) == []


def test_an_address_that_is_none_is_refused(tmp_path):
    with pytest.raises(AssertionError, match="ODDSMITH_ADDRESS is 'me/oddsmith'; expected the repository's page"):
        built("wheel", tmp_path, "me/oddsmith")


def test_each_extra_that_is_named_exists(wheel):
    """In errors of the program, and in every ``oddsmith[...]`` of its text, of README and of the documentation."""
    named = {package.extra for package in PACKAGES.values()}
    for path in SOURCE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "MissingExtraError":
                named |= {extra.value for extra in node.args[1:] if isinstance(extra, ast.Constant)}
        named |= in_brackets(text)
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")):
        named |= in_brackets(page.read_text(encoding="utf-8"))
    assert named >= {"4bit", "gguf", "monitor", "rules", "serve", "smollm2", "spreadsheets", "tune"}
    assert named - set(metadata(wheel).get_all("Provides-Extra")) == set()


def in_brackets(text: str) -> set[str]:
    found = re.findall(r"(?:oddsmith|\.|\.whl)\\?\[([a-z0-9,]+)\]", text)
    return {extra for names in found for extra in names.split(",")}
