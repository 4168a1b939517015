"""The page of a comparison in a browser: in light and dark colours, on a phone."""

import json

import pytest

from tests.command import run_here, save_model


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_a_comparison_is_accessible(browser, comparison, scheme, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, bypass_csp=True)
    page = context.new_page()
    page.goto(comparison.as_uri())
    found = axe.Axe().run(page).response["violations"]
    assert not [(one["id"], [node["html"][:100] for node in one["nodes"]]) for one in found]
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.locator("h2").last.text_content().endswith("<b>Hi</b> & bye")
    context.close()


@pytest.fixture
def comparison(tmp_path, capsys):
    rows = [
        {"question": question, "chosen": "Because of scattering.", "rejected": "It just is."}
        for question in ("Why is the sky blue?", "<b>Hi</b> & bye")
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    base, tuned = (save_model(tmp_path / name, seed=seed) for seed, name in enumerate(("base", "tuned")))
    words = ["--prompts", tmp_path / "pairs.jsonl", "--max-new-tokens", 6, "--html", tmp_path / "page.html"]
    outcome = run_here(capsys, "compare", base, tuned, *words)
    assert outcome.code == 0, outcome.err
    return tmp_path / "page.html"
