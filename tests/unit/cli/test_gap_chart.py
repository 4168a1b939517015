"""The chart of two log-probabilities: where its marks stand, and what a poor terminal gets."""

from types import SimpleNamespace

import pytest
from rich.console import Console

from oddsmith.cli.terminal.gap_chart import BLOCKS, LETTERS, GapChart, marks_of

GAP = "chosen - rejected: -2.00 at step 2, +2.00 at step 60"


@pytest.fixture
def crossing():
    """Both curves are straight: chosen rises from -3 to -1, rejected falls from -1 to -3; they meet at step 31."""
    chart = GapChart()
    for step in (2, 31, 60):
        risen = 2 * (step - 2) / 58
        logs = {"logps/chosen": -3 + risen, "logps/rejected": -1 - risen, "loss": 1.0}
        chart.on_log(None, SimpleNamespace(global_step=step), None, logs=logs)
    return chart


def curves(lines, marks=BLOCKS):
    return [line.partition(marks.side)[2] for line in lines if marks.side in line]


def test_the_curves_cross_and_the_gap_is_shaded_after_that(crossing):
    lines = crossing.lines(80)
    rows = curves(lines)
    width = len(rows[0])
    assert rows[0] == "○" * rows[0].count("○") + " " * (width - 2 * rows[0].count("○")) + "●" * rows[0].count("●")
    assert (rows[-1][0], rows[-1][-1]) == ("●", "○")
    assert {row[: width // 2 - 4].count("░") for row in rows} == {0}
    assert [row[-1] for row in rows] == ["●", *["░"] * (len(rows) - 2), "○"]
    assert [line[:6] for line in lines if "│" in line and line[:6].strip()] == ["  -1.0", "  -2.1", "  -3.0"]
    assert lines[-2].split() == ["step", "2", "60"]
    assert lines[-1] == GAP


@pytest.mark.parametrize("width", [10, 31, 32, 40, 64, 72, 200])
def test_no_line_is_wider_than_the_terminal_unless_one_line_is_all(crossing, width):
    lines = crossing.lines(width)
    if width < 32:
        assert lines == [GAP]
    else:
        assert len(lines) > 10
        assert max(map(len, lines[:-1])) <= width


def test_an_encoding_without_the_marks_gets_letters(crossing):
    assert (marks_of("utf-8"), marks_of("ascii"), marks_of("no such thing")) == (BLOCKS, LETTERS, LETTERS)
    assert "\n".join(crossing.lines(80, LETTERS)).isascii()
    assert [row[-1] for row in curves(crossing.lines(80, LETTERS), LETTERS)] == ["c", *"." * 8, "r"]


@pytest.mark.parametrize("colour", [False, True])
def test_colours_are_for_terminals_that_have_them(crossing, capsys, colour):
    Console(width=80, force_terminal=True, no_color=not colour, color_system="standard").print(crossing)
    out = capsys.readouterr().out
    assert ("\x1b[32m●" in out) == colour
    assert "●" in out


def test_one_point_is_no_picture_and_what_is_not_finite_is_left_out(crossing):
    chart = GapChart()
    chart.add(1, -1.0, -2.0)
    chart.add(2, float("nan"), -2.0)
    assert chart.lines(80) == []
    before = crossing.lines(80)
    crossing.add(70, float("-inf"), -2.0)
    assert crossing.lines(80) == before


def test_curves_that_never_move_are_drawn():
    chart = GapChart()
    for step in (1, 2):
        chart.add(step, -1.0, -1.0)
    assert curves(chart.lines(80))[0].strip("●") == ""
