"""The table of a search keeps its figures whole in terminals of any width."""

import io

import pytest
from rich.console import Console

from oddsmith.cli.terminal.tune_table import table_of
from oddsmith.tuning.results import Evaluation, Result, State

PAIRS = 8


def probe(name: str, better_by: float) -> Result:
    return Result(
        name,
        {"learning_rate": 1.23e-5, "beta": 0.25},
        State.FINISHED,
        seconds=75.0,
        evaluations=(Evaluation(50, 5.581 - better_by, 0.021, 4.881 - better_by),),
        log_odds=(0.021,) * PAIRS,
        logp_chosen=tuple(-4.881 + better_by + 0.01 * number for number in range(PAIRS)),
    )


@pytest.mark.parametrize(
    ("width", "left_out"), [(140, set()), (95, {"time"}), (80, {"time", "NLL", "log-odds"})], ids=["140", "95", "80"]
)
def test_no_figure_is_cut(width, left_out):
    results = [probe("000", 0.0), probe("001", 0.5)]
    console = Console(width=width, file=io.StringIO())
    console.print(table_of(results, ["learning_rate", "beta"], [probe("000-again", 0.0)], width=width))
    text = console.file.getvalue()
    assert "…" not in text
    shown = {"time": "1:15", "NLL": "4.881", "log-odds": "+0.021", "cost": "5.581", "probe": "000-again"}
    shown |= {"learning_rate": "1.23e-05", "beta": "0.25", "gain [95%]": "+0.500 [+0.500, +0.500]"}
    assert {name for name, figure in shown.items() if name in text and figure in text} == set(shown) - left_out
    assert "cannot tell" in " ".join(text.split())
