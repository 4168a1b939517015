"""When a search ends, and that it goes on where it was interrupted: with trainings whose outcome is a formula."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from oddsmith.diagnose.findings import Verdict
from oddsmith.errors import ConfigError, DataError
from oddsmith.tuning.objective import Outcome
from oddsmith.tuning.results import Evaluation, Result, State, read_result, write_result
from oddsmith.tuning.search import PATIENCE, Limits, Probe, Search
from oddsmith.tuning.space import Choices, Range

SPACE = {"learning_rate": Range(1e-6, 1e-3, is_log=True), "beta": Choices((0.05, 0.1, 0.5))}
OWN = {"learning_rate": 1e-6, "beta": 0.1}
SECONDS = 10.0


def cost_by_rate(values: dict) -> float:
    """The best learning rate is 1e-4."""
    return 2.0 + abs(math.log10(values["learning_rate"]) + 4)


class Trainings:
    """Trains by a formula, and counts how often."""

    def __init__(self, cost=cost_by_rate, verdict=lambda values: Verdict.HEALTHY, killed_in: int | None = None):
        self.cost, self.verdict, self.killed_in = cost, verdict, killed_in
        self.made: list[tuple[str, int]] = []
        self.heard: list[tuple[str, bool]] = []

    def train(self, probe: Probe, folder: Path, may_go_on) -> Result:
        assert list(folder.iterdir()) == []
        (folder / "probe.log").write_text("begun", encoding="utf-8")
        if len(self.made) == self.killed_in:
            raise KeyboardInterrupt
        self.made.append((probe.name, probe.seed))
        evaluations, state = [], State.FINISHED
        cost = self.cost(probe.values)
        for step in (10, 20, 30, 40):
            evaluations.append(Evaluation(step, cost + (40 - step) / 100, 0.0, cost))
            if step < 40 and not may_go_on(evaluations):
                state = State.PRUNED
                break
        logps = [0.6931471805599453 - cost - pair / 10 for pair in range(-10, 11)]
        figures = {"log_odds": (0.0,) * 21, "logp_chosen": tuple(logps), "pairs": "abc", "seconds": SECONDS}
        facts = {"evaluations": tuple(evaluations), "verdict": self.verdict(probe.values), **figures}
        return Result(probe.name, probe.values, state, probe.seed, **facts)

    def begin(self, probe: Probe, results: Sequence[Result]) -> None:
        pass

    def end(self, result: Result, results: Sequence[Result], was_there: bool) -> None:
        self.heard.append((result.name, was_there))


def search(folder: Path, trainings: Trainings, limits: Limits = Limits(10), space=SPACE, own=OWN):  # noqa: B008
    return Search(folder, space, own, 7, limits, trainings.train, trainings).run()


def test_the_recipe_s_own_settings_are_tried_first_and_the_winner_twice(tmp_path):
    trainings = Trainings()
    found = search(tmp_path, trainings)
    assert found.results[0].values == OWN
    assert found.decision.outcome is Outcome.BETTER
    assert cost_by_rate(found.decision.winner.values) < cost_by_rate(OWN) - 1
    assert [name for name, _ in trainings.made[-2:]] == ["000-again", f"{found.decision.winner.name}-again"]
    assert {seed for _, seed in trainings.made[:-2]} == {7}
    assert {seed for _, seed in trainings.made[-2:]} == {8}
    assert any(result.state is State.PRUNED for result in found.results)


def test_it_ends_when_nothing_can_win_any_more(tmp_path):
    """The recipe's own settings are the best there are, so nothing that is tried comes near."""
    trainings = Trainings()
    found = search(tmp_path, trainings, Limits(40), own={"learning_rate": 1e-4, "beta": 0.1})
    assert len(found.results) == 1 + PATIENCE
    assert found.why_stopped == "stopped early: none of the last 6 probes was better than the best before them"
    assert found.decision.outcome is Outcome.OWN
    act = search(tmp_path / "act", Trainings(verdict=lambda values: Verdict.ACT), Limits(40))
    assert len(act.results) == PATIENCE
    assert (act.decision.outcome, act.decision.winner) == (Outcome.NONE, None)
    assert act.why_stopped == "stopped early: none of 6 probes can win"


def test_it_ends_when_all_was_tried(tmp_path):
    space = {"beta": Choices((0.05, 0.1, 0.5))}
    found = search(tmp_path, Trainings(cost=lambda values: 3 - values["beta"]), Limits(40), space, {"beta": 0.1})
    assert found.why_stopped == "all 3 combinations were tried"
    assert found.decision.winner.values == {"beta": 0.5}


def test_the_budget_leaves_time_for_the_second_seed(tmp_path):
    trainings = Trainings()
    search(tmp_path, trainings, Limits(None, 8 * SECONDS))
    assert len(trainings.made) <= 8
    assert len(trainings.made) >= 6  # some were stopped by the median, which saves no time here


def test_what_loses_by_its_diagnosis_does_not_win(tmp_path):
    def harm(values: dict) -> Verdict:
        return Verdict.ACT if values["learning_rate"] > 2e-5 else Verdict.WATCH

    found = search(tmp_path, Trainings(verdict=harm), Limits(12))
    assert found.decision.winner.values["learning_rate"] <= 2e-5
    assert min(one.evaluations[-1].cost for one in found.results) < found.decision.winner.evaluations[-1].cost


@pytest.mark.parametrize("killed_in", [0, 1, 4, -2, -1])
def test_an_interrupted_search_asks_nothing_twice_and_ends_the_same(killed_in, tmp_path):
    undisturbed = Trainings()
    expected = search(tmp_path / "undisturbed", undisturbed)
    killed_in %= len(undisturbed.made)
    killed = Trainings(killed_in=killed_in)
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "killed", killed)
    resumed = Trainings()
    found = search(tmp_path / "killed", resumed)
    assert found == expected
    assert killed.made + resumed.made == undisturbed.made
    assert resumed.heard[:killed_in] == [(name, True) for name, _ in killed.made]


def test_more_probes_go_on_from_fewer(tmp_path):
    few, more = Trainings(), Trainings()
    search(tmp_path, few, Limits(5))
    search(tmp_path, more, Limits(8))
    assert len(more.made) <= 3 + 2
    assert not set(few.made) & set(more.made)


def test_other_held_out_pairs_are_noticed(tmp_path):
    search(tmp_path, Trainings(), Limits(3))
    first = tmp_path / "probes" / "000"
    values = json.loads((first / "result.json").read_text(encoding="utf-8"))
    (first / "result.json").write_text(json.dumps(values | {"pairs": "other"}), encoding="utf-8")
    with pytest.raises(ConfigError, match="other held-out pairs"):
        search(tmp_path, Trainings(), Limits(3))


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"name": 3', "nonsense", '{"evaluations": 1}'])
def test_a_result_that_is_none_is_named(text, tmp_path):
    (tmp_path / "result.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="not the result of a probe; remove the folder"):
        read_result(tmp_path)


def test_results_are_read_as_they_were_written(tmp_path):
    folder = tmp_path / "probe"
    folder.mkdir()
    assert read_result(folder) is None
    result = Trainings().train(Probe("003", OWN, 7), tmp_path / "probe", lambda evaluations: True)
    write_result(folder, result)
    assert read_result(folder) == result
