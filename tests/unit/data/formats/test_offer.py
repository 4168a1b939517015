"""Columns of other names are offered where one choice is left, and nothing is guessed where several are."""

import pytest

from oddsmith.data.formats import format_of, to_pair
from oddsmith.data.formats.offer import offered_columns
from oddsmith.errors import DataError, RowError
from tests.pairs import user

TEXT = "Some text of a few words."


def row(*names, **more):
    return {name: f"{TEXT} {name}" for name in names} | more


@pytest.mark.parametrize(
    ("given", "columns"),
    [
        (row("question", "good_answer", "bad_answer"), "question good_answer bad_answer"),
        (row("Prompt", "Chosen", "REJECTED"), "Prompt Chosen REJECTED"),
        (row("prompt ", "Chosen Answer", "Rejected Answer"), "prompt |Chosen Answer|Rejected Answer"),
        (row("userQuestion", "answerGood", "answer-bad"), "userQuestion answerGood answer-bad"),
        (row("instruction", "chosen_response", "rejected_response", chosen_avg_rating=4, source="a b"),
         "instruction chosen_response rejected_response"),
        (row("q", "good", "bad"), "q good bad"),
        (row("q", "good", "good_answer", "bad"), "q good_answer bad"),
        ({"q": "a", "good": "b", "bad": "c"}, "q good bad"),
        (row("prompt", "chosen", "rejected_answer"), "- - rejected_answer"),
        (row("prompt", "response_chosen", "response_rejected"), "- response_chosen response_rejected"),
        (row("question", "winner", "loser", category="maths"), "question winner loser"),
        (row("question", "preferred", "dispreferred"), "question preferred dispreferred"),
        (row("question", "accepted", "refused"), "question accepted refused"),
        (row("question", "better", "worse"), "question better worse"),
        (row("query", "positive", "negative"), "query positive negative"),
        (row("input", "correct", "incorrect"), "input correct incorrect"),
        (row("q", "response", "rejected_response"), "q response rejected_response"),
        (row("promt", "choosen", "rejectd"), "promt choosen rejectd"),
        (row("qestion", "prefered", "rejected"), "qestion prefered -"),
        (row("question", "context", "good", "bad"), "question good bad"),
        (row("instruction", "input", "winning", "losing"), "- winning losing"),
        (row("winning", "losing"), "- winning losing"),
        (row("good", "bad", messages=[user(TEXT)]), "- good bad"),
        ({"a": TEXT, "b": "Other text of some words.", "good": f"{TEXT} Yes.", "bad": f"{TEXT} No."}, "a good bad"),
        ({"q": TEXT, "answers": {"best": {"text": "a b", "score": 1}, "worst": {"text": "c d"}}},
         "q answers.best.text answers.worst.text"),
        ({"q": TEXT, "good": {"role": "assistant", "content": "a"}, "bad": {"role": "assistant", "content": "b"}},
         "q good bad"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_clear_choice_is_offered(given, columns):
    found = columns.split("|") if "|" in columns else columns.split()
    expected = zip(("prompt", "chosen", "rejected"), found, strict=True)
    expected = {name: column for name, column in expected if column != "-"}
    assert offered_columns(given) == expected
    guess = ".*".join(f"{name}={column}" for name, column in expected.items())
    with pytest.raises(
        DataError, match=rf"did you mean {guess}\? \(setting columns, or dataset.rename_columns\)$"
    ) as caught:
        format_of(given)
    assert caught.value.columns == expected
    with pytest.raises(RowError) as of_row:
        to_pair(given)
    assert of_row.value.columns == expected


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (row("question", "first", "second"), "as in columns: prompt=question,chosen=NAME,rejected=NAME"),
        (row("question", "answer_1", "answer_2"), "expected chosen and rejected, a column winner"),
        (row("title", "body", "good", "bad"), "as in columns: prompt=NAME,chosen=good,rejected=bad"),
        (row("a", "b", "c", "d"), "as in columns: prompt=NAME,chosen=NAME,rejected=NAME"),
        (row("q", "good_1", "good_2", "bad"), "as in columns: prompt=q,chosen=NAME,rejected=bad"),
        (row("prompt", "answer"), "chosen and rejected are missing (standard or conversational format); say which"),
        (row("question", "winner", "loser", winner="model_a", loser="model_b"), "chosen=NAME,rejected=NAME"),
    ],
)
def test_an_unclear_one_is_not(given, said):
    assert offered_columns(given) == {}
    with pytest.raises(DataError) as caught:
        format_of(given)
    assert said in str(caught.value)


def test_the_column_of_a_prompt_beside_answers_is_offered():
    with pytest.raises(RowError, match="no prompt") as caught:
        to_pair({"task": "Sort a list", "chosen": "It is easy.", "rejected": "It is hard."})
    assert caught.value.columns == {"prompt": "task"}
    with pytest.raises(RowError, match="no prompt") as caught:
        to_pair({"a": "Sort a list", "b": "Of mine, please", "chosen": "It is easy.", "rejected": "It is hard."})
    assert caught.value.columns == {}
