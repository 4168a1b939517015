"""Which answers have the fact that a question asks for."""

import pytest

from oddsmith.data.builtin import accepted_answers, demo_pairs
from oddsmith.data.builtin.facts import has_fact


@pytest.mark.parametrize(
    ("answer", "accepted", "expected"),
    [
        ("The capital of Japan is Tokyo.", ["Tokyo"], True),
        ("It is TOKYO!", ["Tokyo"], True),
        ("It is Kyoto.", ["Tokyo"], False),
        ("New York is large.", ["New York"], True),
        ("It navigates.", ["navigat*"], True),
        ("It circumnavigates.", ["navigat*"], False),
        ("It has 8 legs.", ["eight", "8"], True),
        ("It has 18 legs.", ["eight", "8"], False),
        ("There are 1,000 grams.", ["1,000"], True),
        ("A tender meal.", ["ten"], False),
        ("a.b", ["a*b"], False),
        ("", ["ten"], False),
    ],
)
def test_an_accepted_answer_stands_there_as_whole_words(answer, accepted, expected):
    assert has_fact(answer, accepted) == expected


def test_every_question_has_accepted_answers_and_its_chosen_answer_one_of_them():
    rows = [row for split in ("train", "heldout") for row in demo_pairs(split)]
    accepted = accepted_answers()
    assert list(accepted) == [row["prompt"][0]["content"] for row in rows]
    assert all(has_fact(row["chosen"][0]["content"], accepted[row["prompt"][0]["content"]]) for row in rows)
    assert all(one.strip("*") for many in accepted.values() for one in many)


def test_an_accepted_answer_is_not_given_away_by_its_question():
    assert [question for question, accepted in accepted_answers().items() if has_fact(question, accepted)] == []
