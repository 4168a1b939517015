"""The charts of the monitor's page: ticks, values beside the curves, smoothing, axes, files, and the address."""

import json

import pytest

from tests.browser.test_monitor_page import add_run, event, history

LOSS = "document.querySelector('#chart-loss .plot')"


def margins(step: int, below_zero: float) -> str:
    edges = [i / 4 for i in range(-20, 21)]
    counts = [int(10 <= i < 20) if below_zero > 0.5 else int(20 <= i < 30) for i in range(40)]
    odds = {"mean": 0.0, "deviation": 1.0, "pairs": 10}
    found = {"margins": {"edges": edges, "counts": counts}, "below_zero": below_zero, "log_odds": odds}
    return event("pairs", step, set="eval", **found)


def timed_run(runs, name="run", steps=10):
    """A run whose log lines come every thirty seconds, with 100 tokens a step."""
    began = 1_700_000_000.0
    logs = [
        event("log", i, loss=4.0 - 0.2 * i, epoch=i / 5, num_tokens=100 * i, time=began + 30 * i)
        for i in range(1, steps + 1)
    ]
    held = [event("evaluate", step, eval_loss=3.9 - 0.2 * step, time=began) for step in (0, steps)]
    lines = [held[0], event("start", 0, max_steps=steps, time=began), *logs, held[1], event("end", steps)]
    return add_run(runs, name, lines)


def drawn(page, what: str = "x"):
    return page.evaluate(f"{LOSS}.data.find((one) => one.curve)[{what!r}]")


def open_charts(page, address: str) -> None:
    page.goto(address)
    page.locator("#chart-loss").wait_for()
    page.wait_for_function(f"() => {LOSS}.data?.length")


def test_what_healthy_rests_on_is_said(monitor, page):
    address, runs = monitor
    add_run(runs, "run", history("good-small"))
    page.goto(address)
    known = page.locator(".banner.healthy .known")
    known.wait_for()
    assert known.locator("p").text_content().startswith("From ")
    evidence = known.locator("li").all_text_contents()
    assert any("preference learned" in one and "right in" in one for one in evidence)
    assert all(any(sign.isdigit() for sign in one) for one in evidence)


def test_ticks_are_whole_steps_and_values_stand_beside_the_curves(monitor, page):
    address, runs = monitor
    timed_run(runs)
    open_charts(page, address)
    ticks = page.locator("#chart-loss .xtick text").all_text_contents()
    assert len(ticks) >= 4
    assert all(tick.isdigit() for tick in ticks)
    legend = page.locator("#loss-now")
    assert "dotted: held out" in legend.text_content()
    box = page.locator("#chart-loss .nsewdrag").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.5)
    page.wait_for_function("() => document.querySelector('#loss-now').textContent.includes('at step')")
    assert legend.text_content().strip() == "loss 3at step 5"
    page.mouse.move(box["x"] + box["width"] - 3, box["y"] + box["height"] * 0.5)
    page.wait_for_function("() => document.querySelector('#loss-now').textContent.includes('at step 10')")
    assert legend.text_content().strip() == "loss 2, held out 1.9at step 10"
    page.mouse.move(2, 2)
    page.wait_for_function("() => document.querySelector('#loss-now').textContent.includes('dotted: held out')")
    assert not page.locator("#chart-loss .hoverlayer .hovertext").count()


@pytest.mark.parametrize("number", [2, 9])
def test_margins_of_few_evaluations_are_outlines(monitor, page, tmp_path, number):
    address, runs = monitor
    more = [margins(10 * i, 0.9 - 0.1 * i) for i in range(number)]
    add_run(runs, "run", [*history("good-small"), *more])
    page.goto(address)
    page.locator("#chart-margins").wait_for()
    plot = "document.querySelector('#chart-margins .plot')"
    page.wait_for_function(f"() => {plot}.data?.length")
    kinds = page.evaluate(f"{plot}.data.map((one) => one.type)")
    assert kinds == (["scatter"] * 2 if number == 2 else ["heatmap", "scatter"])
    text = page.locator("#margins-now").text_content()
    assert text == ("step 0: 90% below zerostep 10: 80% below zero" if number == 2 else "below zero at step 80: 10%")
    with page.expect_download() as found:
        page.locator("#chart-margins").get_by_role("button", name="CSV").click()
    found.value.save_as(tmp_path / "margins.csv")
    rows = (tmp_path / "margins.csv").read_text(encoding="utf-8").splitlines()
    assert rows[0] == "what,step,margin,share"
    assert "margins,10,-2.375,0.1" in rows
    assert rows.count("margins,0,-4.875,0") == 1
    shares = [float(row.split(",")[3]) for row in rows if row.startswith("below_zero,80,,")]
    assert shares == ([] if number == 2 else [pytest.approx(0.1)])


def test_smoothing_axes_and_logarithms_are_in_the_address(monitor, page):
    address, runs = monitor
    timed_run(runs)
    open_charts(page, address)
    assert drawn(page) == list(range(1, 11))
    page.locator("#axes").get_by_role("button", name="time").click()
    page.wait_for_function(f"() => {LOSS}.data.find((one) => one.curve).x[0] === 30")
    assert drawn(page) == [30 * i for i in range(1, 11)]
    assert page.evaluate(f"{LOSS}.layout.xaxis.title.text") == "time, minutes"
    for name, expected in (("epoch", [i / 5 for i in range(1, 11)]), ("tokens", [100 * i for i in range(1, 11)])):
        page.locator("#axes").get_by_role("button", name=name).click()
        page.wait_for_function(f"() => {LOSS}.data.find((one) => one.curve).x[9] === {expected[9]}")
        assert drawn(page) == pytest.approx(expected)
    page.locator("#smooth").fill("0.5")
    page.locator("#chart-loss").get_by_role("button", name="Log").click()
    page.wait_for_function(f"() => {LOSS}.layout.yaxis.type === 'log'")
    sums, totals, expected = 0.0, 0.0, []
    for i in range(1, 11):
        sums, totals = 0.5 * sums + 0.5 * (4.0 - 0.2 * i), 0.5 * totals + 0.5
        expected.append(sums / totals)
    assert drawn(page, "y") == pytest.approx(expected)
    page.wait_for_function("() => location.hash.includes('smooth=0.5') && location.hash.includes('log=loss')")
    page.reload()
    page.wait_for_function(
        f"() => {LOSS}.layout?.yaxis.type === 'log' && {LOSS}.data.find((one) => one.curve).x[9] === 1000"
    )
    assert drawn(page, "y") == pytest.approx(expected)
    assert page.locator("#smooth").input_value() == "0.5"
    page.goto(address + "#x=time&range=180,270")
    page.wait_for_function(f"() => {LOSS}.layout.xaxis.title.text === 'time, seconds'")


def test_what_a_run_does_not_record_is_no_axis(monitor, page):
    address, runs = monitor
    add_run(runs, "run", history("good-small"))
    open_charts(page, address)
    button = page.locator("#axes").get_by_role("button", name="tokens")
    assert button.is_disabled()
    assert "records its tokens" in button.get_attribute("title")


def test_a_finding_is_shown_on_the_axis_of_its_own_run(monitor, page):
    address, runs = monitor
    timed_run(runs, "timed")
    lines = [json.loads(one) | {"time": None} for one in history("learning-rate-high")]
    add_run(runs, "timeless", [json.dumps(one) + "\n" for one in lines])
    page.goto(address + "#x=constructor")
    page.locator("#chart-loss").wait_for()
    assert page.locator("#axes button[aria-pressed=true]").text_content() == "step"
    assert page.locator("#runs").get_by_label("timed").is_checked()
    page.locator("#runs").get_by_label("timeless").check()
    page.locator("#axes button[value=time]").click()
    page.wait_for_function(f"() => {LOSS}.data?.length && {LOSS}.layout.xaxis.title.text.startsWith('time')")
    page.locator(".banner", has_text="timeless").locator("[data-jump]").first.click()
    assert "range=" not in page.url
    page.locator("#loss-now").get_by_text("not drawn, without time: timeless").wait_for()
    page.locator("#runs").get_by_label("timed").uncheck()
    page.wait_for_function(f"() => {LOSS}.layout.xaxis.title.text === 'step'")
    assert drawn(page)[0] > 0
    assert page.locator("#axes button[value=time]").is_disabled()
    page.locator(".banner", has_text="timeless").locator("[data-jump]").first.click()
    assert "range=" in page.url
    page.wait_for_function(f"() => {LOSS}.layout.shapes.length > 0 && {LOSS}.layout.xaxis.range")


def test_a_chart_with_a_zero_keeps_its_range_with_log_on(monitor, page):
    address, runs = monitor
    logs = [event("log", step, loss=1.0, **{"rewards/accuracies": step / 4}) for step in range(5)]
    add_run(runs, "run", [event("start", 0), *logs])
    page.goto(address + "#log=accuracy")
    plot = "document.querySelector('#chart-accuracy .plot')"
    page.wait_for_function(f"() => {plot}?.data?.length")
    assert page.evaluate(f"{plot}.layout.yaxis.range") == pytest.approx([-0.03, 1.03])
    assert page.evaluate(f"{plot}.layout.yaxis.type") in (None, "linear")


def test_a_chart_is_saved_as_a_picture_and_as_a_table(monitor, page, tmp_path):
    address, runs = monitor
    timed_run(runs, "=1+1")
    open_charts(page, address)
    with page.expect_download() as found:
        page.locator("#chart-loss").get_by_role("button", name="CSV").click()
    found.value.save_as(tmp_path / "loss.csv")
    rows = (tmp_path / "loss.csv").read_text(encoding="utf-8").splitlines()
    assert rows[:2] == ["run,line,held_out,step,value", "'=1+1,loss,,1,3.8"]
    assert rows[-1] == "'=1+1,loss,eval,10,1.9"
    with page.expect_download() as found:
        page.locator("#chart-loss").get_by_role("button", name="PNG").click()
    found.value.save_as(tmp_path / "loss.png")
    content = (tmp_path / "loss.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert int.from_bytes(content[16:20]) == 1800


def test_cut_answers_have_a_mark(monitor, page):
    address, runs = monitor
    answers = [{"Prompt": "q", "Policy": "of many wor", "is_cut": True}]
    start = event("start", 0, data={"eval": {"rows": 1, "kept": 1, "cut": {"rejected": [0]}}})
    folder = add_run(
        runs, "run", [start, *history("good-small")[1:], event("samples", 20, set="eval", answers=answers)]
    )
    side = {"tokens": ["a", " word"], "change": [0.0, 0.0]}
    pair = {"row": 0, "margin": 0.1, "prompt": "p", "chosen": {**side, "tokens_not_shown": 7}, "rejected": side}
    sets = {"eval": {"step": 20, "inspected": {"worst": [pair]}}}
    (folder / "_held_out_pairs.json").write_text(json.dumps({"sets": sets}), encoding="utf-8")
    page.goto(address)
    page.locator("#samples").wait_for()
    assert page.locator("#pairs .cut").all_text_contents() == [" ⟨7 more tokens⟩", " ⟨cut by max_length⟩"]
    assert page.locator("#samples .cut").all_text_contents() == [" ⟨cut⟩"]


def test_there_are_two_columns_at_1100_pixels(browser, monitor):
    address, runs = monitor
    add_run(runs, "run", history("good-small"))
    context = browser.new_context(viewport={"width": 1100, "height": 800})
    page = context.new_page()
    open_charts(page, address)
    tops = [page.locator(f"#chart-{name}").bounding_box()["y"] for name in ("loss", "logps")]
    context.close()
    assert tops[0] == tops[1]
