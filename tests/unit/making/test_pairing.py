"""Scores of several judges as one, and pairs of scored answers."""

import random
from statistics import mean, pstdev

import pytest

from oddsmith.data.formats import format_of, to_pair, unread_columns
from oddsmith.errors import ConfigError
from oddsmith.making.combining import Judged, combined
from oddsmith.making.pairing import PairingRules, pair_up, settings_of
from oddsmith.making.records import Answer, Score
from tests.unit.making.questions import question

ONE = {"j": 1.0}


def judged(key, *found, judge="j"):
    """A question with answers, given as (text, score) or (text, score, is_finished)."""
    texts = [(*one, True)[:3] for one in found]
    made = [Answer(key, "m", place, text, is_finished=ends) for place, (text, _, ends) in enumerate(texts)]
    return Judged(question(f"What is {key}?", key), made, {judge: [Score(value) for _, value, _ in texts]})


def texts(paired):
    return [(pair.chosen.answer.text, pair.rejected.answer.text) for pair in paired.pairs]


def paired(*found, **rules):
    return pair_up([judged("k", *found)], ONE, PairingRules(**rules))


FOUR = [("a", 1.0), ("b", 4.0), ("c", 2.0), ("d", 3.0)]


def test_the_best_goes_against_the_worst():
    assert texts(paired(*FOUR)) == [("b", "a")]
    assert texts(paired(*FOUR, pairs_per_prompt=2)) == [("b", "a"), ("d", "c")]
    assert texts(paired(*FOUR, pairs_per_prompt=9)) == [("b", "a"), ("d", "c")]


def test_the_best_goes_against_one_that_the_seed_draws():
    drawn = {seed: texts(paired(*FOUR, pairing="best-random", seed=seed)) for seed in range(20)}
    assert {pair for pairs in drawn.values() for pair in pairs} == {("b", "a"), ("b", "c"), ("b", "d")}
    assert drawn == {seed: texts(paired(*FOUR, pairing="best-random", seed=seed)) for seed in range(20)}
    assert len(set(texts(paired(*FOUR, pairing="best-random", pairs_per_prompt=2)))) == 2
    many = pair_up([judged(str(key), *FOUR) for key in range(20)], ONE, PairingRules("best-random"))
    assert len({pair.rejected.answer.text for pair in many.pairs}) == 3  # each question draws for itself


def test_what_a_question_draws_does_not_depend_on_the_others():
    sets = [judged(str(key), *FOUR) for key in range(10)]
    whole = pair_up(sets, ONE, PairingRules("best-random"))
    half = pair_up(sets[5:], ONE, PairingRules("best-random"))
    assert texts(whole)[5:] == texts(half)


def test_all_pairs_come_with_the_greatest_gaps_first():
    assert len(texts(paired(*FOUR, pairing="all"))) == 6
    assert texts(paired(*FOUR, pairing="all", pairs_per_prompt=1)) == [("b", "a")]
    assert len(texts(paired(*FOUR, pairing="all", margin=1.0))) == 3
    assert all(pair.gap > 1 for pair in paired(*FOUR, pairing="all", margin=1.0).pairs)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ([], "no answers"),
        ([("a", 1.0)], "one answer only"),
        ([("a  b", 1.0), ("a\nb ", 1.0)], "answers all alike"),
        ([(" ", 1.0), ("", 1.0)], "answers all alike"),
        ([("a", 1.0), ("b", 1.0)], "tie"),
        ([("a", 1.0), ("b", 1.5)], "margin too small"),
        ([("a", None), ("b", 1.0)], "fewer than two answers could be scored"),
        ([("a", None), ("b", None)], "fewer than two answers could be scored"),
        ([("a", 3.0), ("", 1.0)], "fewer than two answers could be scored"),
        ([("a", 3.0, False), ("b", 1.0)], "every better answer was cut"),
    ],
)
def test_a_question_without_a_pair_is_counted(found, reason):
    result = paired(*found, margin=0.5)
    assert result.pairs == []
    assert result.dropped == {reason: 1}


def test_an_answer_that_was_cut_is_rejected_but_not_chosen():
    found = [("cut", 3.0, False), ("good", 2.0), ("bad", 1.0), ("worse", 0.0, False)]
    result = paired(*found)
    assert texts(result) == [("good", "worse")]
    assert result.left_out == {"cut, so not chosen": 2}
    assert texts(paired(*found, choose_unfinished=True)) == [("cut", "worse")]


def test_answers_that_no_pair_may_have_are_counted():
    result = paired(("a", 1.0, False), ("a ", 1.0), (" ", 9.0), ("b", None), ("c", 0.0))
    assert texts(result) == [("a ", "c")]  # the one that ended stands for both
    assert result.left_out == {"like another answer": 1, "blank": 1, "j could not tell": 1}


def test_scores_of_one_judge_are_used_as_they_are():
    one = judged("k", ("a", 5.0), ("b", 7.0), ("c", None))
    assert combined([one], {"j": 0.1}) == [[5.0, 7.0, None]]
    assert combined([one], {"j": -2.0}) == [[-5.0, -7.0, None]]


def test_scores_of_several_judges_are_standardised_over_the_set():
    first, second = [1.0, 2.0, 9.0], [100.0, 300.0, 200.0]
    sets = []
    for key, places in (("k", (0, 1)), ("l", (2,))):
        made = judged(key, *((f"t{place}", first[place]) for place in places), judge="x")
        sets.append(
            Judged(made.question, made.answers, {**made.scores, "y": [Score(second[place]) for place in places]})
        )
    found = [value for values in combined(sets, {"x": 1.0, "y": -0.5}) for value in values]
    z = [[(value - mean(values)) / pstdev(values) for value in values] for values in (first, second)]
    assert found == pytest.approx([(x - 0.5 * y) / 1.5 for x, y in zip(*z, strict=True)])


def test_the_scale_of_a_judge_does_not_matter_beside_another():
    rng = random.Random(0)

    def made(scale, shift):
        rng.seed(1)
        sets = []
        for key in range(20):
            values = [(rng.random(), rng.random()) for _ in range(3)]
            one = judged(str(key), *((f"t{place}", x) for place, (x, _) in enumerate(values)), judge="x")
            more = {"y": [Score(scale * y + shift) for _, y in values]}
            sets.append(Judged(one.question, one.answers, {**one.scores, **more}))
        return texts(pair_up(sets, {"x": 1.0, "y": 1.0}))

    assert made(1, 0) == made(1000, -7)


def test_an_answer_that_one_judge_could_not_score_has_no_score():
    one = judged("k", ("a", 1.0), ("b", 2.0), ("c", 3.0), judge="x")
    one = Judged(one.question, one.answers, {**one.scores, "y": [Score(1.0), Score(None), Score(1.0)]})
    assert [value is None for value in combined([one], {"x": 1.0, "y": 1.0})[0]] == [False, True, False]
    result = pair_up([one], {"x": 1.0, "y": 1.0})
    assert texts(result) == [("c", "a")]  # y says the same of all, so x decides
    assert result.left_out == {"y could not tell": 1}


def lengthy(number, answers=4, bias=0.01):
    """Questions whose judge prefers longer answers."""
    rng = random.Random(0)
    sets = []
    for key in range(number):
        sizes = [rng.randint(5, 400) for _ in range(answers)]
        found = [("x" * size + str(place), bias * size + rng.gauss(0, 1)) for place, size in enumerate(sizes)]
        sets.append(judged(str(key), *found))
    return sets


@pytest.mark.parametrize("pairing", ["best-worst", "best-random", "all"])
def test_matched_lengths_teach_nothing(pairing):
    sets = lengthy(200)
    plain = pair_up(sets, ONE, PairingRules(pairing))
    matched = pair_up(sets, ONE, PairingRules(pairing, match_length=True))
    assert plain.effect_before == plain.effect_after > 0.8
    assert matched.effect_before == plain.effect_before
    assert abs(matched.effect_after) <= 0.11
    assert len(matched.pairs) >= len(plain.pairs) / 2
    assert all(pair.gap > 0 for pair in matched.pairs)
    sides = [[len(getattr(pair, side).answer.text) for pair in matched.pairs] for side in ("chosen", "rejected")]
    spread = (pstdev(sides[0]) ** 2 / 2 + pstdev(sides[1]) ** 2 / 2) ** 0.5
    assert matched.effect_after == pytest.approx((mean(sides[0]) - mean(sides[1])) / spread)


def test_pairs_are_chosen_before_any_is_given_up():
    sets = lengthy(200)
    matched = pair_up(sets, ONE, PairingRules(match_length=True))
    assert matched.given_up == 0
    assert len(matched.pairs) == 200
    assert abs(matched.effect_after) < 0.02
    shortest = [min(one.answers, key=lambda answer: len(answer.text)).text for one in sets]
    assert texts(matched) != texts(pair_up(sets, ONE))
    assert [chosen for chosen, _ in texts(matched)] != shortest


def test_shorter_is_no_lesson_either():
    sets = lengthy(200, bias=-0.01)
    assert pair_up(sets, ONE).effect_before < -0.8
    assert abs(pair_up(sets, ONE, PairingRules(match_length=True)).effect_after) < 0.11


def test_where_nothing_can_be_chosen_the_pairs_that_differ_most_are_given_up():
    sizes = [30 if number % 3 else -20 for number in range(60)]  # two of three chosen answers are longer
    sets = [judged(str(key), ("x" * (100 + size), 1.0), ("x" * 100, 0.0)) for key, size in enumerate(sizes)]
    result = pair_up(sets, ONE, PairingRules(match_length=True))
    assert result.effect_before > 0.5
    assert abs(result.effect_after) <= 0.1
    assert result.given_up == result.dropped["length could not be matched"] == 60 - len(result.pairs)
    assert 30 <= len(result.pairs) < 60


def test_where_longer_always_won_no_pair_is_given_up_in_vain():
    sets = [judged(str(key), ("x" * (10 + key), 1.0), ("x", 0.0)) for key in range(10)]
    result = pair_up(sets, ONE, PairingRules(match_length=True))
    assert len(result.pairs) == 10
    assert result.effect_after == result.effect_before > 1


def test_no_pair_is_given_up_for_a_greater_effect_the_other_way_round():
    sizes = [(140, 100), (100, 90), (90, 110), (100, 110)]  # without the first, the rejected answers are longer
    sets = [
        judged(str(key), ("x" * chosen, 1.0), ("x" * rejected, 0.0)) for key, (chosen, rejected) in enumerate(sizes)
    ]
    result = pair_up(sets, ONE, PairingRules(match_length=True))
    assert result.effect_before > 0.1
    assert abs(result.effect_after) <= result.effect_before


def test_a_row_says_where_it_comes_from_and_is_read_as_a_pair():
    (pair,) = paired(*FOUR).pairs
    row = pair.row(settings=settings_of(PairingRules(margin=0.5), ONE), temperature=0.8)
    assert format_of(row) == "conversational"
    read = to_pair(row)
    assert read.prompt == [{"role": "user", "content": "What is k?"}]
    assert (read.chosen[0]["content"], read.rejected[0]["content"], read.score_margin) == ("b", "a", 3.0)
    assert unread_columns(row, read) == []
    assert row["metadata"]["chosen"] == {"model": "m", "sample": 1, "is_finished": True, "scores": {"j": 4.0}}
    assert row["metadata"]["settings"]["judges"] == ONE
    assert row["metadata"]["settings"]["margin"] == 0.5
    assert row["metadata"]["temperature"] == 0.8


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"pairing": "worst-best"}, "pairing is 'worst-best'; expected one of best-worst, best-random, all"),
        ({"margin": -1.0}, "margin is -1.0; expected a number from 0"),
        ({"margin": float("nan")}, "margin is nan; expected a number from 0"),
        ({"pairs_per_prompt": 0}, "pairs_per_prompt is 0; expected 1 or more"),
    ],
)
def test_rules_that_make_no_sense(rules, message):
    with pytest.raises(ConfigError, match=message):
        PairingRules(**rules)
