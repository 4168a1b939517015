"""What a history derives from the metrics that were logged."""

import pytest

from oddsmith.diagnose.history import History, HistoryBuilder


def log_odds(**series) -> History:
    builder = HistoryBuilder()
    for name, values in series.items():
        for step, value in enumerate(values):
            builder.add(step, {name.replace("__", "/"): value})
    return builder.build()


def test_log_odds_are_distinguished_by_their_values():
    odds, sigmoid = [-0.2, 0.4, 1.0], [-0.8, -0.5, -0.3]
    swapped = log_odds(log_odds_ratio=odds, log_odds_chosen=sigmoid)
    assert swapped.get("log_odds_chosen").values.tolist() == odds
    assert swapped.get("log_odds_ratio").values.tolist() == sigmoid
    right = log_odds(log_odds_ratio=sigmoid, log_odds_chosen=odds)
    assert right.get("log_odds_chosen").values.tolist() == odds
    alone = log_odds(log_odds_ratio=odds)
    assert alone.get("log_odds_chosen").values.tolist() == odds
    assert "log_odds_ratio" not in alone.training
    # Never above 0: only the log-probabilities can tell. Odds of e^-1.6 against e^-1.1 are -0.68 apart.
    by_logps = log_odds(log_odds_ratio=[-0.69] * 3, logps__chosen=[-1.6] * 3, logps__rejected=[-1.1] * 3)
    assert by_logps.get("log_odds_chosen").values.tolist() == [-0.69] * 3
    true_ratio = log_odds(log_odds_ratio=[-1.09] * 3, logps__chosen=[-1.6] * 3, logps__rejected=[-1.1] * 3)
    assert true_ratio.get("log_odds_ratio").values.tolist() == [-1.09] * 3


def test_what_follows_is_filled_in():
    history = log_odds(loss=[2.0], rewards__chosen=[-0.2], logps__chosen=[-2.0], log_odds_ratio=[-0.5])
    assert history.settings["beta"] == pytest.approx(0.1)
    assert history.get("nll_loss").values[0] == pytest.approx(2.0 - 0.1 * 0.5)
