"""What is better, what is noise, and what loses: the arithmetic of a search, on figures made by hand."""

import math

import numpy as np
import pytest

from oddsmith.diagnose.findings import Verdict
from oddsmith.tuning.objective import Outcome, cost_of, decide, gain, is_sound, mean_cost, paired_interval, student_t
from oddsmith.tuning.results import Evaluation, Result, State
from oddsmith.tuning.search import Found
from oddsmith.tuning.verdict import in_words

PAIRS = 40


def result(name: str, better_by: float = 0.0, spread: float = 0.0, **changed) -> Result:
    """Return a probe whose chosen answers are ``better_by`` nats a token likelier, give or take ``spread``."""
    noise = np.random.default_rng(int(name[:3])).normal(0.0, spread, PAIRS) if spread else np.zeros(PAIRS)
    logps = np.linspace(-4, -2, PAIRS) + better_by + noise
    facts = {
        "state": State.FINISHED,
        "verdict": Verdict.HEALTHY,
        "steps": 50,
        "steps_of_run": 500,
        "seconds": 10.0,
        "log_odds": (0.5,) * PAIRS,
        "logp_chosen": tuple(logps.tolist()),
        "held_out": "eval.jsonl",
        "evaluations": (Evaluation(50, 3.5 - better_by, 0.5, 3.0 - better_by),),
    }
    return Result(name, {"learning_rate": float(f"{int(name[:3]) + 1}e-5"), "beta": 0.1}, **{**facts, **changed})


def test_the_cost_of_a_pair_is_orpo_s_loss_at_beta_one_on_the_answer():
    assert mean_cost([0.0], [-2.0]) == pytest.approx(math.log(2) + 2)
    assert mean_cost([1.0, -1.0], [-2.0, -4.0]) == pytest.approx(3 + (math.log1p(math.exp(-1)) * 2 + 1) / 2)
    assert mean_cost([-1000.0], [-1.0]) == pytest.approx(1001)
    assert mean_cost([math.nan], [-1.0]) == mean_cost([1.0], [-math.inf]) == mean_cost([], []) == math.inf


def test_forgetting_both_answers_is_no_gain():
    """The log-odds rise from 0.5 to 3 while the chosen answer loses 4 nats a token."""
    own = result("000")
    forgetful = result("001", better_by=-4.0, log_odds=(3.0,) * PAIRS)
    assert cost_of(forgetful) > cost_of(own)
    assert gain(forgetful, own).is_below_zero


@pytest.mark.parametrize(
    ("share", "degrees", "expected"),
    [(0.975, 5, 2.571), (0.975, 30, 2.042), (0.975, 1000, 1.962), (0.995, 10, 3.169), (0.9995, 5, 6.869)],
)
def test_quantiles_are_those_of_the_tables(share, degrees, expected):
    assert student_t(share, degrees) == pytest.approx(expected, rel=0.01)


def test_intervals_cover_as_often_as_they_say():
    draws = np.random.default_rng(0).normal(0.3, 1.0, (2000, 12))
    covered = [interval.low <= 0.3 <= interval.high for interval in map(paired_interval, draws)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)
    one, ten = paired_interval(draws[0]), paired_interval(draws[0], comparisons=10)
    assert ten.low < one.low < one.mean == ten.mean < one.high < ten.high
    assert math.isinf(paired_interval(draws[0][:5]).high)  # five pairs say nothing


def test_pairs_are_compared_with_themselves():
    """Costs spread over 2 nats from pair to pair; a gain of 0.01 on every pair is certain all the same."""
    found = gain(result("001", better_by=0.01), result("000"))
    assert found.low == pytest.approx(0.01, abs=1e-6)
    assert gain(result("001", log_odds=(0.5,) * 3), result("000")) is None


def test_a_clear_gain_wins_and_a_small_one_is_noise():
    own = result("000")
    assert decide([own, result("001", 0.5, spread=0.1), result("002", 0.1)]).winner.name == "001"
    noisy = decide([own, result("001", 0.02, spread=0.5)])
    assert (noisy.outcome, noisy.winner, noisy.best.name) == (Outcome.NOISE, own, "001")


def test_of_many_probes_one_looks_good_by_chance():
    """Each interval alone would let the luckiest of 60 probes without any effect win."""
    own = result("000")
    results = [own, *(result(f"{number:03d}", 0.0, spread=1.0) for number in range(1, 60))]
    luckiest = min(results, key=cost_of)
    assert gain(luckiest, own).is_above_zero
    assert decide(results).outcome is Outcome.NOISE


def test_a_winner_has_to_win_with_another_seed_too():
    own, best = result("000"), result("001", 0.5)
    worse_again = [result("000-again"), result("001-again", -0.1, spread=0.3)]
    better_again = [result("000-again"), result("001-again", 0.3, spread=0.3)]
    assert decide([own, best], better_again).outcome is Outcome.BETTER
    lost = decide([own, best], worse_again)
    assert (lost.outcome, lost.winner) == (Outcome.NOISE, own)
    act_again = [result("000-again"), result("001-again", 0.5, verdict=Verdict.ACT)]
    assert decide([own, best], act_again).winner is own


@pytest.mark.parametrize(
    "changed",
    [
        {"verdict": Verdict.ACT},
        {"state": State.PRUNED},
        {"state": State.FAILED},
        {"log_odds": (math.nan, *(0.5,) * (PAIRS - 1))},
    ],
    ids=["act", "pruned", "failed", "NaN"],
)
def test_what_cannot_win_loses_whatever_its_cost(changed):
    own, better = result("000"), result("001", 2.0, **changed)
    assert not is_sound(better)
    assert decide([own, better]).outcome is Outcome.OWN
    only = decide([result("000", **changed), result("001", -1.0)])
    assert (only.outcome, only.winner.name) == (Outcome.ONLY, "001")
    assert decide([better, better]).outcome is Outcome.NONE


def test_the_words_say_what_is_noise_and_why():
    own, noisy, clear = result("000"), result("001", 0.02, spread=0.5), result("002", 0.5)
    why = "12 probes were asked for"

    def words(*results: Result, repeated: tuple[Result, ...] = ()) -> str:
        return " ".join(in_words(Found(results, repeated, decide(results, repeated), why)))

    said = words(own, noisy)
    assert "Keep the recipe's own learning_rate 1e-05, beta 0.1: the difference" in said
    assert "is noise" in said
    assert "which may be chance" in said
    assert "Judged on 40 held-out pairs (eval.jsonl); with so few, small gains cannot be told from noise." in said
    assert "A probe has 50 of the run's 500 steps" in said
    again = (result("000-again"), result("002-again", 0.4))
    assert "Use learning_rate 3e-05, beta 0.1, the best of 2 probes" in words(own, clear, repeated=again)
    assert "trained again with another seed, by +0.400" in words(own, clear, repeated=again)
    lost = result("000", verdict=Verdict.ACT, finding="not finite: NaN in 3 of 50 values")
    assert "cannot win (not finite: NaN in 3 of 50 values)" in words(lost, clear)
    assert words(lost, lost).startswith("No probe can win, of 2 probes")
