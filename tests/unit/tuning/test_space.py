"""What ``--search`` says, and what is tried of it."""

import re

import pytest

from oddsmith.cli.commands.tune.command import OPTIONS, _limits, _space
from oddsmith.cli.parsing.resolve import resolve
from oddsmith.cli.parsing.schema import load_fields
from oddsmith.errors import ConfigError
from oddsmith.tuning.results import Evaluation, Result, State
from oddsmith.tuning.sampling import is_worth_going_on, next_values
from oddsmith.tuning.space import Choices, Range, size_of


def resolved(*words: str):
    return resolve(words, load_fields(), OPTIONS)


def space_of(*searched: str) -> dict:
    return _space(resolved(*(word for text in searched for word in ("--search", text))))


def test_ranges_and_choices_have_the_types_of_their_settings():
    space = space_of(
        "learning_rate=1e-6:1e-4:log",
        "beta=0.05,0.1,1",
        "warmup-steps=0:2",
        "lora_r=4:16:log",
        "nll_on=sequence,response",
    )
    assert space["learning_rate"] == Range(1e-6, 1e-4, is_log=True)
    assert space["beta"] == Choices((0.05, 0.1, 1))
    assert space["lora_r"] == Range(4, 16, is_log=True, is_whole=True)
    assert space["nll_on"] == Choices(("sequence", "response"))
    assert size_of(space) is None
    assert size_of(space_of("lora_r=4:16", "beta=0.1,0.2")) == 26


def test_without_a_word_it_searches_around_the_recipe():
    space = _space(resolved("--learning-rate", "2e-5", "--beta", "0.2"))
    assert (space["learning_rate"].low, space["learning_rate"].high) == (pytest.approx(2e-6), pytest.approx(2e-4))
    assert space["learning_rate"].is_log
    assert space["beta"] == Choices((0.05, 0.1, 0.2, 0.25, 0.5))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat=1:2", "--search learning_rat: expected one of learning_rate, beta, nll_on"),
        ("max_length=10,20", "--search max_length: expected one of"),
        ("seed=1,2", "--search seed: expected one of"),
        ("beta", "--search beta: expected NAME=LOW:HIGH, NAME=LOW:HIGH:log or NAME=VALUE,VALUE,..."),
        ("beta=", "expected NAME=LOW:HIGH"),
        ("=1,2", "expected NAME=LOW:HIGH"),
        ("beta=0.1", "one value is no choice"),
        ("beta=0.1,0.1", "one value is no choice"),
        ("beta=low,high", "--search beta is 'low'; expected a number"),
        ("beta=0.5:0.1", "from 0.5 to 0.1 is no range"),
        ("beta=0:0.1:log", "a logarithmic range begins above 0"),
        ("beta=0.1:0.5:lin", "expected NAME=LOW:HIGH"),
        ("beta=0.1:0.5:log:log", "expected NAME=LOW:HIGH"),
        ("beta=0.1:inf", "takes no numbers"),
        ("beta=nan,0.1", "expected a number"),
        ("lora_r=1.5:8", "expected a whole number"),
        ("lora_r=1.5,8", "expected a whole number"),
        ("nll_on=sequence:response", "takes no numbers"),
        ("nll_on=sequence,answer", "expected 'sequence' or 'response'"),
        ("lr_scheduler_type=cosine,cosin", "expected"),
    ],
)
def test_what_cannot_be_searched_is_one_line(text, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        space_of(text)
    assert "\n" not in str(error.value)


def test_a_setting_is_searched_once():
    with pytest.raises(ConfigError, match="given twice"):
        space_of("beta=0.1,0.2", "beta=0.3,0.4")


@pytest.mark.parametrize(
    ("words", "probes", "seconds"),
    [
        ((), 12, None),
        (("--trials", "5"), 5, None),
        (("--budget", "20m"), None, 1200.0),
        (("--budget", "1h30m", "--trials", "7"), 7, 5400.0),
        (("--budget", "90"), None, 90.0),
    ],
)
def test_limits(words, probes, seconds):
    limits = _limits(resolved(*words).options)
    assert (limits.probes, limits.seconds) == (probes, seconds)


@pytest.mark.parametrize("words", [("--budget", "soon"), ("--budget", "0m"), ("--trials", "1"), ("--trials", "few")])
def test_wrong_limits_are_one_line(words):
    with pytest.raises(ConfigError, match=words[0]):
        _limits(resolved(*words).options)


SPACE = {"learning_rate": Range(1e-6, 1e-4, is_log=True), "beta": Choices((0.05, 0.1, 0.5))}


def finished(number: int, values: dict, cost: float = 3.0, state: State = State.FINISHED) -> Result:
    evaluations = tuple(Evaluation(step, cost + (40 - step) / 40, 0.0, 2.0) for step in (10, 20, 30, 40))
    return Result(f"{number:03d}", values, state, evaluations=evaluations, log_odds=(0.0,), logp_chosen=(0.69 - cost,))


def searched(count: int, seed: int = 0) -> list[dict]:
    results = [finished(0, {"learning_rate": 1e-3, "beta": 0.2})]  # the recipe's own lie outside
    for number in range(1, count):
        values = next_values(SPACE, results, seed)
        results.append(finished(number, values, cost=abs(values["beta"] - 0.1) + 3))
    return [dict(result.values) for result in results]


def test_what_is_tried_depends_on_results_and_seed_alone():
    first, again = searched(8), searched(8)
    assert first == again
    assert first[:4] == searched(4)
    assert searched(8, seed=1) != first
    for values in first[1:]:
        assert all(values[name] in part for name, part in SPACE.items())
    assert len({tuple(values.values()) for values in first}) == 8


def test_nothing_is_tried_twice_and_a_small_space_ends():
    space = {"beta": Choices((0.05, 0.1, 0.5)), "lora_r": Range(4, 5, is_whole=True)}
    results = [finished(0, {"beta": 0.1, "lora_r": 4})]
    while (values := next_values(space, results, seed=3)) is not None:
        results.append(finished(len(results), values))
    assert len({tuple(result.values.values()) for result in results}) == len(results) == 6


def test_a_probe_above_the_median_is_stopped():
    results = [
        finished(number, {"learning_rate": 1e-5, "beta": 0.1}, cost) for number, cost in enumerate((3, 3.1, 3.2, 9))
    ]
    bad, good = finished(4, {}, 5.0).evaluations, finished(4, {}, 3.0).evaluations
    assert is_worth_going_on(results, bad[:1])  # one evaluation is early
    assert not is_worth_going_on(results, bad[:2])
    assert is_worth_going_on(results, good[:2])
    assert is_worth_going_on(results[:3], bad[:2])  # three others are few
    nan = [Evaluation(10, float("nan"), 0.0, 0.0), Evaluation(20, float("nan"), 0.0, 0.0)]
    assert not is_worth_going_on(results, nan)
