"""What the documentation names exists: modules, files, links, and the table of rooms."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from oddsmith.diagnose.rules import RULES
from tests.docs_blocks import ROOT
from tests.docs_site import as_markdown
from tests.test_architecture import ROOMS

SOURCE = ROOT / "src" / "oddsmith"
PAGES = sorted(
    page.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md", "benchmarks/*.md")
    for page in ROOT.glob(pattern)
    if page.name != "errors.md"  # quotes messages, which name files of a user
)


def text_of(page: str) -> str:
    """Return a page; of the change log only what is not released, as older entries may name what is gone."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.split(r"^## \[\d", text, flags=re.MULTILINE)[0] if page == "CHANGELOG.md" else text


@pytest.mark.parametrize("page", PAGES)
def test_each_module_exists(page):
    """A path in backticks, or one with a folder anywhere; relative to the repository, the source or the page."""
    text = text_of(page)
    paths = {
        *re.findall(r"`([\w/-]+\.py)[`: ]", text),
        *re.findall(r"(?<![\w/.-])((?:[\w-]+/)+\w+\.py)\b", text),
        *re.findall(rf"`((?:src|tests|benchmarks|docs|examples|{'|'.join(ROOMS)})/[\w/-]*)`", text),
    }
    starts = (ROOT, SOURCE, SOURCE.parent, (ROOT / page).parent)
    assert {path for path in paths if not any((start / path).exists() for start in starts)} == set()


@pytest.mark.parametrize("page", PAGES)
def test_each_dotted_name_exists(page):
    for name in set(re.findall(r"`(oddsmith(?:\.\w+)+)`", text_of(page))):
        module, _, attribute = name.rpartition(".")
        path = SOURCE.parent / Path(*module.split("."))
        assert find_spec(module) is not None
        source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")
        is_module = (path / f"{attribute}.py").exists() or (path / attribute).is_dir()
        assert is_module or re.search(rf"\b(def|class) {attribute}\b", source), name


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub names them, and those that it sets itself."""
    text = as_markdown(page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {
        *(re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings),
        *re.findall(r'<span id="(\w+)">', text),
    }


@pytest.mark.parametrize("page", PAGES)
def test_each_link_leads_somewhere(page):
    wrong = []
    for link, anchor in re.findall(r"\]\((?!https?://)([^)#\s]*)(?:#([^)\s]+))?\)", text_of(page)):
        target = (ROOT / page).parent / link if link else ROOT / page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(f"{link}#{anchor}")
    assert not wrong


def test_the_page_on_the_architecture_lists_what_each_room_may_import():
    rows = re.findall(r"^\| `(\w+)(?:/|\.py)` \|.*\| (.*) \|$", text_of("docs/architecture.md"), flags=re.MULTILINE)
    listed = {room: set(re.findall(r"\w+", cell)) & set(ROOMS) for room, cell in rows if room in ROOMS}
    assert listed.pop("errors") == ROOMS["errors"]
    assert listed == {room: ROOMS[room] - {"errors", "system"} for room in set(ROOMS) - {"errors"}}


def test_the_page_on_the_diagnosis_lists_every_rule():
    table = text_of("docs/diagnose.md").split("## The rules")[1]
    assert {name for name in RULES if f"`{name}`" not in table} == set()
