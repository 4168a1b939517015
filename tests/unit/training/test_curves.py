"""The picture of a run: what is drawn, where, and from which lines of the event log."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from oddsmith.training.curves import BOTTOM, HEIGHT, LEFT, MAX_POINTS, RIGHT, TOP, WIDTH, _ticks, curves_svg

SVG = "{http://www.w3.org/2000/svg}"


def log(step: int, **metrics: float) -> dict:
    return {"event": "log", "step": step, **metrics}


def evaluation(step: int, **metrics: float) -> dict:
    return {"event": "evaluate", "step": step, **metrics}


def curve(svg: str, panel: int = 0) -> list[tuple[float, float]]:
    line = ElementTree.fromstring(svg).findall(f"{SVG}g")[panel].find(f"{SVG}polyline")
    return [tuple(map(float, pair.split(","))) for pair in line.get("points").split()]


def titles(svg: str) -> list[str]:
    return [group.find(f"{SVG}text").text for group in ElementTree.fromstring(svg).findall(f"{SVG}g")]


def test_a_curve_lies_where_its_values_are():
    points = curve(curves_svg([log(0, loss=4.0), log(5, loss=3.0), log(10, loss=2.0)]))
    left, right, top, bottom = LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM
    assert points[0] == pytest.approx((left, top), abs=0.1)
    assert points[1] == pytest.approx(((left + right) / 2, (top + bottom) / 2), abs=0.1)
    assert points[2] == pytest.approx((right, bottom), abs=0.1)


def test_a_panel_for_each_metric_that_was_logged_and_dots_for_what_was_held_out():
    events = [log(step, loss=1.0 / step, **{"rewards/margins": step}) for step in (1, 2)]
    svg = curves_svg([*events, evaluation(2, eval_loss=0.7)])
    assert titles(svg) == ["loss", "margin"]
    panels = ElementTree.fromstring(svg).findall(f"{SVG}g")
    assert [len(panel.findall(f"{SVG}circle")) for panel in panels] == [2, 0]  # the dot, and the legend's
    assert "held-out pairs" in svg


def test_a_step_that_was_done_twice_counts_once():
    svg = curves_svg([log(1, loss=9.0), log(2, loss=9.0), log(2, loss=2.0), log(1, loss=1.0)])
    (first, second) = curve(svg)
    assert first[0] < second[0]
    assert first[1] > second[1]  # 1.0 lies below 2.0
    assert ">9<" not in svg


def test_a_long_run_is_averaged_down():
    svg = curves_svg([log(step, loss=float(step % 2)) for step in range(10_000)])
    points = curve(svg)
    assert MAX_POINTS / 2 < len(points) <= MAX_POINTS
    assert {round(y) for _, y in points} == {round((TOP + HEIGHT - BOTTOM) / 2)}


@pytest.mark.parametrize("events", [[], [log(1, loss=2.0)], [{"event": "start", "step": 0}], [log(1, loss=None)] * 2])
def test_nothing_to_draw(events):
    assert curves_svg(events) is None


def test_a_curve_that_never_moves_is_drawn_all_the_same():
    svg = curves_svg([log(1, loss=2.0), log(2, loss=2.0)])
    assert all(TOP <= y <= HEIGHT - BOTTOM for _, y in curve(svg))
    assert not re.search("nan|inf", svg)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 10.0, [0, 5, 10]),
        (2.0, 4.0, [2, 3, 4]),
        (0.013, 0.017, [0.012, 0.014, 0.016, 0.018]),
        (-0.3, 0.2, [-0.4, -0.2, 0, 0.2]),
    ],
)
def test_ticks_are_round_numbers_around_the_values(low, high, expected):
    assert _ticks(low, high, 3) == pytest.approx(expected)
