"""The list and the table of runs, names and notes, and the console, as a person uses them."""

import json
import time

from oddsmith.monitor.notes import NOTES_FILE
from tests.browser.test_monitor_page import ATTACKS, add_run, event, history


def some_runs(runs, count: int = 6) -> None:
    for i in range(count):
        settings = {"learning_rate": 10.0 ** -(i + 2), "beta": 0.1 if i % 2 else 0.2}
        start = event("start", 0, max_steps=10, model=f"model-{i % 3}", settings=settings)
        logs = [event("log", step, loss=2.0 + i - step / 10) for step in range(1, 11)]
        lines = [start, *logs, event("evaluate", 10, eval_loss=5.0 - i), event("end", 10)]
        add_run(runs, f"run-{i}", lines)


def names(page):
    return [text.split("Edit")[0] for text in page.locator("#table tbody th").all_text_contents()]


def open_table(page, address: str, view: str = "#table=") -> None:
    page.goto(address + view)
    page.locator("#table tbody tr").first.wait_for()


def test_the_table_is_sorted_searched_and_filtered(monitor, page):
    address, runs = monitor
    some_runs(runs)
    page.goto(address)
    page.locator("#chart-loss").wait_for()
    page.keyboard.press("a")
    page.get_by_role("button", name="eval_loss", exact=True).wait_for()
    head = page.locator("#table thead th").all_text_contents()
    assert head[1:5] == ["name", "verdict", "state", "step"]
    assert {"eval_loss", "loss", "learning_rate", "beta"} <= set(head)
    page.get_by_role("button", name="eval_loss", exact=True).click()
    assert names(page) == [f"run-{i}" for i in (5, 4, 3, 2, 1, 0)]
    page.get_by_role("button", name="eval_loss ↑").click()
    assert names(page) == [f"run-{i}" for i in range(6)]
    assert page.locator("#table th[aria-sort=descending]").text_content() == "eval_loss ↓"
    for looked_for, expected in (
        ("beta=0.2", [0, 2, 4]),
        ("learning_rate<5e-3 eval_loss>=2", [1, 2, 3]),
        ("model-1", [1, 4]),
        ("state!=finished", []),
        ("state=finished name=run-3", [3]),
        ("nothing<1", []),
    ):
        page.locator("#find").fill(looked_for)
        boxes = "[...document.querySelectorAll('#table tbody input')].map((one) => one.ariaLabel).join()"
        page.wait_for_function(f"() => {boxes} === '{','.join(f'show run-{i}' for i in expected)}'")
        assert names(page) == [f"run-{i}" for i in expected]
        assert page.locator("#runs li").count() == len(expected)
    page.locator("#find").fill("beta=0.1")
    page.get_by_role("button", name="Show these 3").click()
    page.wait_for_function("() => document.querySelectorAll('.banner').length === 3")
    page.locator("#table summary").click()
    page.locator("#table .choices").get_by_label("model", exact=True).check()
    page.wait_for_function("() => [...document.querySelectorAll('#table thead th')].at(-1).textContent === 'model'")
    page.reload()
    page.wait_for_function("() => document.querySelectorAll('.banner').length === 3")
    page.wait_for_function("() => document.querySelectorAll('#table tbody td.number').length > 0")
    assert names(page) == ["run-1", "run-3", "run-5"]
    assert page.locator("#find").input_value() == "beta=0.1"
    assert page.locator("#table thead th").last.text_content() == "model"


def test_keys_typed_into_a_field_are_text(monitor, page):
    address, runs = monitor
    some_runs(runs, 2)
    page.goto(address)
    page.locator("#chart-loss").wait_for()
    page.locator("#find").press_sequentially("t1ra")
    assert page.locator("#find").input_value() == "t1ra"
    assert page.evaluate("document.documentElement.dataset.theme ?? ''") == ""
    assert page.locator("#table").is_hidden()
    assert page.locator(".banner").count() == 1


def test_a_run_is_given_a_name_and_a_note(monitor, page):
    address, runs = monitor
    add_run(runs, "run", history("good-small"))
    page.goto(address)
    page.get_by_role("button", name="Name and note of run").click()
    dialog = page.get_by_role("dialog", name="Name and note of run")
    attack = ATTACKS[0]
    dialog.get_by_label("Name", exact=True).fill(attack)
    dialog.get_by_label("Note", exact=True).fill("first line\nsecond, with t and 1")
    dialog.get_by_role("button", name="Save").click()
    dialog.wait_for(state="hidden")
    page.locator(".banner h2").get_by_text(f"{attack}: Healthy").wait_for()
    assert page.locator(".banner .note").text_content() == "first line\nsecond, with t and 1"
    assert page.locator("main img").count() == 0
    kept = json.loads((runs / NOTES_FILE).read_text())["notes"]["run"]
    assert kept == {"name": attack, "note": "first line\nsecond, with t and 1"}
    page.reload()
    page.locator(".banner h2").get_by_text(f"{attack}: Healthy").wait_for()
    page.locator("#find").fill("second,")
    page.wait_for_function("() => document.querySelectorAll('#runs li').length === 1")


def test_the_console_is_shown_and_grows(monitor, page):
    address, runs = monitor
    folder = add_run(runs, "run", [event("start", 0), event("log", 1, loss=1.0)])
    (folder / "_console.log").write_text("2026-12-01 10:00:00  <b>loading</b>\x1b[31m\n", encoding="utf-8")
    page.goto(address)
    page.locator("#console summary").click()
    output = page.locator("#console pre")
    page.wait_for_function("() => document.querySelector('#console pre').textContent.includes('loading')")
    assert output.text_content() == "2026-12-01 10:00:00  <b>loading</b>⟨001b⟩[31m\n"
    with (folder / "_console.log").open("a", encoding="utf-8") as file:
        file.write("2026-12-01 10:00:01  step 2\n")
    with (folder / "events.jsonl").open("a", encoding="utf-8") as file:
        file.write(event("log", 2, loss=1.0, time=time.time()))
    page.wait_for_function("() => document.querySelector('#console pre').textContent.includes('step 2')")


def test_the_console_is_that_of_the_run_it_is_named_after(monitor, page):
    address, runs = monitor
    for name in ("a", "b"):
        folder = add_run(runs, name, [event("start", 0), event("log", 1, loss=1.0), event("end", 1)])
        (folder / "_console.log").write_text(f"said by {name}\n", encoding="utf-8")
    page.goto(address)
    first = page.locator(".banner h2").get_by_text("Cannot tell").text_content()
    shown, other = ("a", "b") if first.startswith("a") else ("b", "a")
    page.locator("#console summary").click()
    page.locator("#console pre").get_by_text(f"said by {shown}").wait_for()
    page.locator("#runs").get_by_label(other).check()
    page.locator("#runs").get_by_label(shown).uncheck()
    page.locator("#console summary").get_by_text(f"What {other} printed").wait_for()
    page.locator("#console pre").get_by_text(f"said by {other}").wait_for()


def test_a_run_that_is_added_fetches_no_other_again(monitor, page):
    address, runs = monitor
    some_runs(runs, 2)
    page.goto(address)
    page.locator("#chart-loss").wait_for()
    page.locator("#runs li").nth(1).wait_for()
    asked = []
    page.on("request", lambda request: asked.append(request.url) if "/series" in request.url else None)
    for count in (2, 1):
        page.keyboard.press("2")
        page.wait_for_function(f"() => document.querySelectorAll('.banner').length === {count}")
    assert len(asked) == 1


def test_a_redrawn_table_stays_where_it_was_scrolled_to(monitor, page):
    address, runs = monitor
    some_runs(runs, 30)
    open_table(page, address)
    page.locator("#table summary").click()
    page.add_style_tag(content="#table .scroll, #table .choices { max-height: 5rem; }")
    for part in ("#table .scroll", "#table .choices"):
        page.evaluate(f"document.querySelector('{part}').scrollTo(0, 40)")
    page.evaluate("document.querySelector('#table tbody').dataset.old = ''")
    page.keyboard.press("t")
    assert page.locator("#table tbody[data-old]").count() == 0
    for part in ("#table .scroll", "#table .choices"):
        assert page.evaluate(f"document.querySelector('{part}').scrollTop") == 40


def test_what_a_gpu_does_is_drawn_only_where_it_was_read(monitor, page):
    address, runs = monitor
    read = {
        "gpu_use": 0.93,
        "gpu_temperature": 61.0,
        "gpu_power_watts": 480.0,
        "gpu_memory_gib": 70.5,
        "memory_gib": 60.0,
    }
    lines = [event("log", step, loss=1.0, **read) for step in (1, 2)]
    add_run(runs, "on-gpu", [event("start", 0), *lines])
    page.goto(address)
    for chart, text in (("gpu", "use 0.93"), ("temperature", "temperature 61"), ("power", "power 480"),
                        ("memory", "memory 60in use on the GPU 70.5")):  # fmt: skip
        page.wait_for_function(f"() => document.querySelector('#{chart}-now').textContent === '{text}'")
    add_run(runs, "on-cpu", history("good-small"))
    page.locator("#runs li").nth(1).wait_for()
    page.locator("#runs").get_by_label("on-cpu").check()
    page.locator("#runs").get_by_label("on-gpu").uncheck()
    page.locator("#chart-gpu").wait_for(state="hidden")
    page.locator(".banner.healthy").wait_for()
    assert page.locator("#chart-temperature").is_hidden()
