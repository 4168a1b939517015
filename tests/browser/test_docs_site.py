"""Each page of the documentation site in a real browser: axe finds nothing, it fits the window, it asks nobody else."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.browser.conftest import is_local
from tests.docs_blocks import ROOT

pytestmark = pytest.mark.slow
SCREENS = ((1280, "light"), (360, "dark"), (1640, "light"))  # colours depend on the one, the layout on the other


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built as by ``make docs``."""
    pytest.importorskip("sphinx", reason="the extra docs is not installed")
    folder = tmp_path_factory.mktemp("site")
    words = ["-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet", "-c", "docs/site", "."]
    built = subprocess.run([sys.executable, *words, str(folder)], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert built.returncode == 0, built.stderr
    return folder


def pages_of(site: Path) -> list[str]:
    """Return the pages with a content of their own."""
    names = sorted(file.relative_to(site).as_posix() for file in site.rglob("*.html"))
    # The first only leads to docs/index.html.
    return [name for name in names if name not in ("index.html", "genindex.html") and not name.startswith("_")]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "every", [pytest.param(False, id="in turn"), pytest.param(True, id="every", marks=pytest.mark.exhaustive)]
)
@pytest.mark.parametrize("screen", range(len(SCREENS)), ids=["-".join(map(str, one)) for one in SCREENS])
def test_every_page_is_accessible_and_fits_the_window(browser, site, screen, every):
    """Every page is looked at on each screen; axe, which takes longer, takes a screen for a page, or ``every`` one."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    width, scheme = SCREENS[screen]
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page, faults = context.new_page(), []
    page.on("console", lambda message: faults.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: None if is_local(request.url) else faults.append(request.url))
    for number, name in enumerate(pages_of(site)):
        page.goto((site / name).as_uri())
        if every or number % len(SCREENS) == screen:
            # Without its own loading of style sheets, which Chromium refuses for files.
            for found in axe.run(page, options={"preload": False}).response["violations"]:
                faults.append((name, found["id"], [node["html"][:100] for node in found["nodes"]]))
        if page.evaluate("document.documentElement.scrollWidth > window.innerWidth"):
            faults.append((name, "wider than the window"))
    context.close()
    assert not faults


def test_the_search_finds_a_setting(browser, site):
    page = browser.new_page()
    page.goto((site / "search.html").as_uri() + "?q=early_stopping_patience")
    page.locator("#search-results li a").first.wait_for()
    assert "Settings" in page.locator("#search-results").inner_text()
    page.close()


def test_each_page_has_its_markdown_and_is_in_llms_txt(site):
    listed = (site / "llms.txt").read_text(encoding="utf-8")
    pages = {page.relative_to(site).as_posix() for page in (*site.glob("*/**/*.html"), site / "CHANGELOG.html")}
    for page in pages - {"docs/index.html"}:
        twin = page.removesuffix(".html") + ".md"
        assert (site / twin).is_file()
        assert f"({twin})" in listed
    assert "<!-- made" not in (site / "docs/reference/settings.md").read_text(encoding="utf-8")
