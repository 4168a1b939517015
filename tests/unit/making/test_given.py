"""Answers that are there already: the columns that hold them, and who gave them."""

import pytest

from oddsmith.errors import RowError
from oddsmith.making.answers.given import GivenAnswers
from tests.command import save_rows
from tests.pairs import assistant, user


def given(tmp_path, *rows):
    found = GivenAnswers(str(save_rows(tmp_path / "given.jsonl", rows)))
    questions = found.questions.asked
    return [(one.model, one.sample, one.text) for one in found.answers(questions, set())]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "answers": ["A", "B"]},
        {"question": "Hi", "responses": [{"text": "A"}, {"content": "B"}]},
        {"messages": [user("Hi")], "completions": [[assistant("A")], [assistant("B")]]},
        {"prompt": "Hi", "all_generated_responses": ["A", "B"]},
        {"instruction": "Hi", "outputs": ["A", "B"]},
        {"prompt": "Hi", "answers": '["A", "B"]'},
        {"prompt": "Hi", "answers": "['A', 'B']"},
    ],
)
def test_several_answers_of_a_row(tmp_path, row):
    assert given(tmp_path, row) == [("given.jsonl", 0, "A"), ("given.jsonl", 1, "B")]


def test_rows_of_the_same_prompt_belong_together(tmp_path):
    rows = [{"prompt": "Hi", "answer": "A", "model": "x"}, {"prompt": "Hi", "answer": "B", "model": "y"}]
    rows += [{"prompt": "Hi", "response": "C", "model": "x"}]
    assert given(tmp_path, *rows) == [("x", 0, "A"), ("y", 0, "B"), ("x", 1, "C")]


def test_brackets_may_be_an_answer(tmp_path):
    assert given(tmp_path, {"prompt": "Hi", "answers": "[B] is right"}) == [("given.jsonl", 0, "[B] is right")]
    assert given(tmp_path, {"prompt": "Hi", "answer": '["A", "B"]'}) == [("given.jsonl", 0, '["A", "B"]')]


def test_an_answer_is_not_taken_for_the_right_one(tmp_path):
    rows = [
        {"prompt": "Hi", "answer": "A"},
        {"prompt": "Hi", "answer": "B"},
        {"prompt": "1+1?", "answer": "2", "response": "3"},
    ]
    found = GivenAnswers(str(save_rows(tmp_path / "given.jsonl", rows)))
    hi, sum_of_two = found.questions.asked
    assert "answer" not in hi.row
    assert sum_of_two.row["answer"] == "2"
    assert [one.text for one in found.answers([hi, sum_of_two], set())] == ["A", "B", "3"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Hi"}, "row 0: no answer: found the columns prompt; expected answers"),
        ({"prompt": "Hi", "answers": []}, "row 0: malformed answer"),
        ({"prompt": "Hi", "answers": ["A", 3]}, "row 0: malformed answer"),
        ({"prompt": "Hi", "answer": {"score": 3}}, "row 0: malformed answer"),
    ],
)
def test_rows_without_answers_are_refused(tmp_path, row, message):
    with pytest.raises(RowError, match=message):
        given(tmp_path, row)
