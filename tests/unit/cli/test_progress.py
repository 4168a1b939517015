"""The progress line: what it says, what it leaves out where it is narrow, and how it counts time."""

from __future__ import annotations

import pytest

from oddsmith.cli.terminal.counting import clock
from oddsmith.cli.terminal.progress import ProgressLine, TokenizingLines, evaluation_lines

LOGS = {
    "loss": 2.3141,
    "nll_loss": 2.2012,
    "or_loss": 0.7123,
    "rewards/accuracies": 0.55,
    "rewards/margins": 0.01234,
    "tokens_per_second": 1234.5,
    "grad_norm": 3.0,
}
FULL = "120/1500  8%  loss 2.314  nll 2.201  or 0.712  accuracy 55%  margin 0.0123  1,234 tokens/s  3:20 left"


@pytest.fixture
def line(monkeypatch):
    line = ProgressLine(1500)
    line.step, line.logs = 120, LOGS
    monkeypatch.setattr(ProgressLine, "remaining_s", lambda self: 200.0)
    return line


def test_everything_is_said_where_there_is_room(line):
    assert line.text() == line.text(120) == FULL


@pytest.mark.parametrize(
    ("width", "text"),
    [
        (90, "120/1500  8%  loss 2.314  nll 2.201  or 0.712  accuracy 55%  margin 0.0123  3:20 left"),
        (80, "120/1500  8%  loss 2.314  nll 2.201  accuracy 55%  margin 0.0123  3:20 left"),
        (40, "120/1500  loss 2.314  3:20 left"),
    ],
)
def test_a_narrow_terminal_gets_what_matters(line, width, text):
    assert line.text(width) == text
    assert len(text) <= width


def test_before_the_first_step_there_is_no_estimate():
    assert ProgressLine(10).text() == "0/10  0%"


def test_the_estimate_leaves_out_evaluations_and_steps_of_an_earlier_run(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("oddsmith.cli.terminal.progress.time.monotonic", lambda: now[0])
    line = ProgressLine(100, first_step=50)
    line.step, now[0] = 60, 140.0
    assert line.remaining_s() == pytest.approx(40 * 4.0)
    line.pace.add_evaluation({"eval_loss": 1.0, "eval_runtime": 20.0, "eval_other_runtime": None})
    assert line.remaining_s() == pytest.approx(40 * 2.0)


def test_a_line_for_each_evaluation_set():
    metrics = {f"eval_{name}_{key}": value for name in ("a", "b") for key, value in LOGS.items()}
    assert evaluation_lines(metrics) == [
        "eval_a  loss 2.314  nll 2.201  or 0.712  accuracy 55%  margin 0.0123",
        "eval_b  loss 2.314  nll 2.201  or 0.712  accuracy 55%  margin 0.0123",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (7.4, "0:07"), (65, "1:05"), (725, "12:05"), (3723, "1:02:03"), (90_000, "1 day, 1:00:00")],
)
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_lines_about_tokenizing_have_rate_and_time_left(monkeypatch, capsys):
    times = iter((100.0, 105.0, 110.0, 111.0, 120.0, 121.0))
    monkeypatch.setattr("oddsmith.cli.terminal.progress.time.monotonic", lambda: next(times))
    tell = TokenizingLines("train")
    for done in (10_000, 25_000, 27_500, 50_000, 1_000_000):
        tell(done, 1_000_000)
    assert capsys.readouterr().err.splitlines() == [
        "train: 25,000 of 1,000,000 rows tokenized, 2,500 a second, 6:30 left",
        "train: 50,000 of 1,000,000 rows tokenized, 2,500 a second, 6:20 left",
    ]
