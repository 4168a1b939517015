"""The monitor's page as a person uses it: live, overlaid, inspected, attacked, by keyboard, on a phone."""

import json
import time
from pathlib import Path

import pytest

from oddsmith import metrics
from oddsmith.metrics import Chart, Metric
from oddsmith.monitor.report import write_report

HISTORIES = Path(__file__).parents[1] / "histories"
SETS = ("eval", "eval_other")
ATTACKS = (
    "<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>", "<svg onload=alert(3)>",
    "<a href='javascript:alert(4)'>x</a>", "{{7*7}}${alert(5)}", "\u202egnol\u2066", "\x1b[31mred\x07", "]]><!--",
)  # fmt: skip


def history(name: str) -> list[str]:
    return (HISTORIES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)


def add_run(runs: Path, name: str, lines: list[str]) -> Path:
    folder = runs / name
    folder.mkdir()
    (folder / "events.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def event(kind: str, step: int, **fields) -> str:
    return json.dumps({"event": kind, "time": time.time(), "step": step, **fields}) + "\n"


def pair(text: str, row: int = 0) -> dict:
    side = {"tokens": [text, " and", " more"], "change": [0.5, -2.0, 0.0]}
    return {"row": row, "margin": -1.5, "before": 0.5, "prompt": text, "chosen": side, "rejected": side}


def inspected(folder: Path, text: str = "a word", compared_with: int = 0, more_sets: dict | None = None) -> None:
    def one_set(text: str) -> dict:
        kinds = {kind: [pair(text)] for kind in ("worst", "flipped", "forgotten")}
        steps = {"step": 20, "first_step": compared_with, "compared_with": compared_with}
        return {**steps, "lengths": [[3, 0.5], [-2, -0.1], [1, 0.1]], "inspected": kinds}

    sets = {name: one_set(text) for name, text in {"eval": text, **(more_sets or {})}.items()}
    (folder / "_held_out_pairs.json").write_text(json.dumps({"sets": sets}), encoding="utf-8")


def test_a_live_run_draws_itself_and_a_reload_loses_nothing(monitor, page):
    address, runs = monitor
    page.goto(address)
    page.get_by_text("No runs here yet").wait_for()
    lines = history("good-small")
    folder = add_run(runs, "live", lines[:20])
    page.locator("#chart-loss").wait_for()
    before = page.evaluate("document.querySelector('#chart-loss .plot').data[0].x.length")
    with (folder / "events.jsonl").open("a", encoding="utf-8") as file:
        file.write("".join(lines[20:])[:-10])
    page.wait_for_function(f"() => document.querySelector('#chart-loss .plot').data[0].x.length > {before}")
    drawn = page.evaluate("document.querySelector('#chart-loss .plot').data.map(one => [one.x, one.y])")
    page.reload()
    page.locator("#chart-loss").wait_for()
    assert page.evaluate("document.querySelector('#chart-loss .plot').data.map(one => [one.x, one.y])") == drawn


def test_a_finding_appears_and_leads_to_its_step(monitor, page):
    address, runs = monitor
    lines = history("learning-rate-high")
    folder = add_run(runs, "run", lines[:3])
    page.goto(address)
    page.locator(".banner").wait_for()
    assert not page.locator(".banner.act").count()
    with (folder / "events.jsonl").open("a", encoding="utf-8") as file:
        file.write("".join(lines[3:]))
    page.locator(".banner.act").wait_for()
    button = page.locator("[data-jump]").first
    step = int(button.get_attribute("data-jump"))
    button.click()
    page.wait_for_function("() => document.querySelector('#chart-loss .plot').layout.shapes.length === 1")
    low, high = page.evaluate("document.querySelector('#chart-loss .plot').layout.xaxis.range")
    assert low <= step <= high < 100
    page.keyboard.press("r")
    page.wait_for_function("() => document.querySelector('#chart-loss .plot').layout.shapes.length === 0")


def test_runs_lie_over_each_other_and_their_settings_are_compared(monitor, page):
    address, runs = monitor
    for name in ("good-small", "learning-rate-high"):
        add_run(runs, name, history(name))
    page.goto(address)
    page.locator("#chart-loss").wait_for()
    page.wait_for_function("() => document.querySelector('#chart-rate .plot').data?.length")
    alone = page.evaluate("document.querySelector('#chart-rate .plot').data.length")
    page.keyboard.press("2")
    page.wait_for_function(f"() => document.querySelector('#chart-rate .plot').data.length === {2 * alone}")
    page.get_by_role("heading", name="Settings: 1 differ").wait_for()
    names = page.get_by_role("region", name="Settings that differ").locator("tbody th")
    assert names.all_text_contents() == ["learning_rate"]
    page.keyboard.press("1")
    page.wait_for_function(f"() => document.querySelector('#chart-rate .plot').data.length === {alone}")


def test_the_inspector_shows_pairs_token_by_token(monitor, page):
    address, runs = monitor
    inspected(add_run(runs, "run", history("good-small")))
    page.goto(address)
    page.get_by_role("button", name="Forgotten (1)").click()
    chosen = page.locator("#pairs .sides .text").first
    assert chosen.text_content() == "a word and more"
    assert chosen.locator(".more").all_text_contents() == ["a word"]
    assert chosen.locator(".less").all_text_contents() == [" and"]


@pytest.mark.parametrize(
    ("compared_with", "words"), [(0, "likelier than before the training"), (10, "at the first evaluation (step 10)")]
)
def test_the_inspector_shows_what_its_colours_compare_with(monitor, page, compared_with, words):
    address, runs = monitor
    inspected(add_run(runs, "run", history("good-small")), compared_with=compared_with)
    page.goto(address)
    page.locator("#pairs").get_by_text(words).wait_for()


def test_every_held_out_set_can_be_looked_at(monitor, page):
    address, runs = monitor
    answers = [event("samples", 0, set=name, answers=[{"Prompt": "q", "Policy": f"of {name}"}]) for name in SETS]
    folder = add_run(runs, "run", [*history("good-small"), *answers])
    inspected(folder, "first", more_sets={"eval_other": "second"})
    page.goto(address)
    page.get_by_role("button", name="Worst (1)").wait_for()
    for name, words in zip(SETS, ("first", "second"), strict=True):
        page.locator("#sets").get_by_role("button", name=name.removeprefix("eval_"), exact=True).click()
        assert page.locator("#pairs .prompt .text").first.text_content() == words
        assert page.locator("#samples").get_by_text("Base model (step 0)").is_visible()
        assert page.locator("#samples .sides .text").all_text_contents() == [f"of {name}"]
        assert page.locator("#sets [aria-pressed=true]").text_content() == name.removeprefix("eval_")


def test_only_the_own_lines_of_a_prompt_are_shown(monitor, page):
    """A chat template writes the same lines before and after every prompt."""
    address, runs = monitor
    prompts = [f"system\nBe kind.\nuser\n{question}\nassistant\n" for question in ("One?\nMore.", "Two?")]
    answers = event("samples", 0, set="eval", answers=[{"Prompt": prompt, "Policy": "a"} for prompt in prompts])
    add_run(runs, "run", [*history("good-small"), answers])
    page.goto(address)
    page.locator("#samples .prompt .text").first.wait_for()
    assert page.locator("#samples .prompt .text").all_text_contents() == ["One?\nMore.", "Two?"]


def test_skipped_steps_and_spikes_are_marked(monitor, page):
    address, runs = monitor
    lines = history("good-small")
    wrong = [event("skipped", 23, cause="gradient", rows=[3], num_rows=1), event("spike", 31, cause="spike", loss=9.0)]
    folder = add_run(runs, "run", [*lines[:-1], *wrong])
    page.goto(address)
    page.locator(".happened").get_by_text("1 step skipped").wait_for()
    lines_drawn = "document.querySelector('#chart-loss .plot').layout.shapes.map((one) => one.x0)"
    assert page.evaluate(lines_drawn) == [23, 31]
    with (folder / "events.jsonl").open("a", encoding="utf-8") as file:
        file.write(event("start", 30, max_steps=100) + event("log", 32, loss=2.0))
    page.locator(".happened").get_by_text("1 restart").wait_for()
    page.wait_for_function(f"() => JSON.stringify({lines_drawn}) === '[23,30]'")  # a repeated step is reported again
    assert not page.locator(".happened").get_by_text("spike").count()
    page.locator(".happened summary").click()
    assert page.locator(".happened li").all_text_contents() == [
        "Step 30 resumed from a checkpoint",
        "Step 23 skipped: gradient not finite; rows 3",
    ]
    page.get_by_role("button", name="Step 23").click()
    page.wait_for_function("() => document.querySelector('#chart-loss .plot').layout.xaxis.range[0] < 23")


def test_hostile_text_stays_text(monitor, page):
    address, runs = monitor
    for number, attack in enumerate(ATTACKS):
        name = attack.replace("/", "∕").replace("\x00", "")
        answers = [{"Prompt": attack, "Policy": attack}]
        more = [
            event("samples", 20, set=attack, answers=answers),
            event("evaluate", 20, **{f"eval_{attack}_loss": 1.0}),
            event("skipped", 21, cause=attack, checkpoint=attack, rows=[attack]),
        ]
        start = event("start", 0, model=attack, settings={attack: attack, "beta": attack}, max_steps=100)
        folder = add_run(runs, name, [start, *history("good-small")[1:], *more])
        inspected(folder, attack)
        (folder / "run.yaml").write_text(f"beta: {attack}\nother_{number}: {attack}\n", encoding="utf-8")
    page.goto(address)
    page.locator("#chart-loss").wait_for()
    for key in range(2, len(ATTACKS) + 1):
        page.keyboard.press(str(key))
    page.wait_for_function(f"() => document.querySelectorAll('.banner').length === {len(ATTACKS)}")
    page.wait_for_timeout(500)
    own = "document.querySelectorAll('main img, main a, nav a, main script, main iframe, nav script').length"
    assert page.evaluate(own) == 0
    assert "⟨202e⟩gnol" in page.locator("main").text_content()
    assert "⟨001b⟩[31mred" in page.locator("main").text_content()


def test_the_report_is_the_page_in_one_file(page, tmp_path):
    folder = add_run(tmp_path, "run", history("learning-rate-high"))
    inspected(folder, "</script><script>alert(1)</script>")
    report = tmp_path / "report.html"
    write_report(folder, report)
    page.goto(report.as_uri())
    page.locator("#chart-loss").wait_for()
    assert page.locator(".banner.act").count() == 1
    assert page.locator("#pairs .text").first.text_content() == "</script><script>alert(1)</script>"
    assert str(tmp_path) not in report.read_text(encoding="utf-8")
    page.keyboard.press("t")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_one_entry_of_the_catalogue_draws_a_chart(page, tmp_path, monkeypatch):
    metric = Metric("tail_loss", "mean loss of the worst pairs", chart="tail", line="worst pairs")
    monkeypatch.setattr(metrics, "METRICS", (*metrics.METRICS, metric))
    monkeypatch.setattr(metrics, "CHARTS", (*metrics.CHARTS, Chart("tail", "Worst pairs", "Should fall.")))
    monkeypatch.setitem(metrics.BY_NAME, metric.name, metric)
    lines = [event("log", step, loss=2.0, tail_loss=9.0 - step) for step in (1, 2, 3)]
    report = tmp_path / "report.html"
    write_report(add_run(tmp_path, "run", [event("start", 0), *lines]), report)
    page.goto(report.as_uri())
    page.locator("#chart-tail h3").get_by_text("Worst pairs").wait_for()
    assert page.locator("#tail-now").text_content() == "worst pairs 6"
    assert page.evaluate("document.querySelector('#chart-tail .plot').data[0].y") == [8, 7, 6]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_the_page_is_accessible_and_fits_the_window(browser, monitor, scheme, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    address, runs = monitor
    lines = history("learning-rate-high")
    answers = [{"Prompt": "a question", "Policy": "an answer"}]
    wrong = event("skipped", 40, cause="gradient", rows=[3], num_rows=1)
    more = [event("samples", 50, set="eval", answers=answers), wrong]
    inspected(add_run(runs, "bad", [*lines, *more]), more_sets={"eval_other": "other"})
    add_run(runs, "good", history("good-small"))
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, bypass_csp=True)
    page = context.new_page()
    page.goto(address)
    page.locator("#chart-loss").wait_for()
    page.keyboard.press("2")
    page.wait_for_function("() => document.querySelectorAll('.banner').length === 2")
    page.locator(".happened summary").click()
    page.keyboard.press("a")
    page.locator("#table td.number").first.wait_for()
    page.locator("#table summary").click()
    for dialog in (False, True):
        if dialog:
            page.locator(".banner .edit").first.click()
        found = axe.Axe().run(page).response["violations"]
        assert not [(one["id"], [node["html"][:100] for node in one["nodes"]]) for one in found]
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    context.close()


def test_who_waits_is_drawn_for_several_processes_alone(monitor, page):
    address, runs = monitor
    lines = history("good-small")
    add_run(runs, "several", [*lines, event("ranks", 40, waiting_share=[0.05, 0.3, 0.0, 0.12])])
    page.goto(address)
    page.locator("#chart-waiting").wait_for()
    page.wait_for_function("() => document.querySelector('#chart-waiting .plot').data?.length")
    assert page.evaluate("document.querySelector('#chart-waiting .plot').data[0].y") == [0.05, 0.3, 0.0, 0.12]
    assert page.locator("#waiting-now").inner_text() == "mean 11.8%, most for rank 2"


def test_nobody_waits_in_a_run_of_one_process(monitor, page):
    address, runs = monitor
    add_run(runs, "alone", history("good-small"))
    page.goto(address)
    page.locator("#chart-loss").wait_for()
    assert page.locator("#chart-waiting").is_hidden()
