"""A prompt under an unknown name is never dropped in silence, and facts about a row stop nothing."""

import pytest

from oddsmith.data.formats import format_of, to_pair, unread_columns
from oddsmith.data.formats.columns import is_fact, is_prompt, side_of
from oddsmith.errors import RowError
from tests.pairs import assistant, user

BY_CHANCE = {"chosen": "Sure!\nsorted(x)", "rejected": "Sure!\nx.sort(reverse=None)"}
MARKED = {"chosen": "User: Hi\nAssistant: Hello.", "rejected": "User: Hi\nAssistant: Go."}
WHOLE = {
    "chosen": [user("Sort a list"), assistant("sorted(x)")],
    "rejected": [user("Sort a list"), assistant("x.sort()")],
}
QUESTION = "Sort a list in Python"
FACTS = {
    "id": "a b", "prompt_id": "12 x", "source": "a book", "category": "lists and more", "score_chosen": 3.5,
    "chosen_model": "Model A", "lang": "en", "metadata": {"by": "Jane Doe"}, "original_response": "It is so.",
    "task_type": "code", "kind_of_thing": "sorting", "is_safe": True, "critique": "Not so good.", "tags": ["a", "b c"],
}  # fmt: skip


@pytest.mark.parametrize(
    "column",
    ["context", "history", "user", "dialogue", "user_prompt", "text", "Question", "problem", "frage", "system"],
)
@pytest.mark.parametrize("value", [QUESTION, [user(QUESTION)], [[QUESTION, "Why?"]]], ids=["text", "messages", "turns"])
def test_answers_that_begin_alike_by_chance_are_no_prompt_beside_another_column_of_text(column, value):
    row = {column: value, **BY_CHANCE}
    with pytest.raises(
        RowError, match=rf"no prompt: .*'Sure!\\n'.* text in the column {column} would not be read; ren"
    ):
        to_pair(row)


def test_words_that_both_begin_with_are_no_prompt_beside_another_column_of_text():
    with pytest.raises(RowError, match=r"share 'It is', where .* the column task would not be read"):
        to_pair({"task": QUESTION, "chosen": "It is easy.", "rejected": "It is hard."})


def test_every_column_that_may_hold_it_is_named():
    with pytest.raises(RowError, match="share nothing that could be the prompt, and text in the columns a and b would"):
        to_pair({"a": "What is it?", "b": "Say it.", "id": "x y", "chosen": "This.", "rejected": "That."})


@pytest.mark.parametrize("fact", FACTS)
def test_facts_about_a_row_stop_nothing(fact):
    assert to_pair({fact: FACTS[fact], **BY_CHANCE}).prompt == "Sure!\n"
    assert to_pair({fact: FACTS[fact], **MARKED}).prompt == "User: Hi\nAssistant:"


def test_a_column_that_repeats_the_prompt_or_is_empty_stops_nothing():
    for row in ({"user": "Hi"}, {"context": ""}, {"history": []}, {"dialogue": None}, {"remark of mine": "so and so"}):
        pair = to_pair(row | MARKED)
        assert pair.prompt == "User: Hi\nAssistant:"
        assert unread_columns(row | MARKED, pair) == []


def test_a_marked_prompt_does_not_stand_for_another_column():
    with pytest.raises(RowError, match="the column context would not be read"):
        to_pair({"context": "It is noon.", **MARKED})


@pytest.mark.parametrize("base", [WHOLE, {"prompt": "Sort a list", "chosen": "sorted(x)", "rejected": "x.sort()"}])
def test_a_column_of_the_prompt_that_is_not_read_is_reported(base):
    row = {**base, "context": "It is long.", "messages": WHOLE["chosen"], "question": " Sort  a list", **FACTS}
    assert unread_columns(row, to_pair(row)) == ["context"]


def test_a_part_of_a_word_is_no_repetition():
    row = {**WHOLE, "history": [["So", "a"]], "context": "a list"}
    assert unread_columns(row, to_pair(row)) == ["history"]


def test_a_marker_that_both_answers_begin_with_is_no_question():
    with pytest.raises(RowError, match=r"share 'Answer:', where .* the column frage would not be read"):
        to_pair({"frage": "Was ist das?", "chosen": "Answer: 4", "rejected": "Answer: 5"})


def test_a_system_message_that_the_messages_outrank_is_reported():
    row = {**WHOLE, "system": "Be very brief."}
    assert unread_columns(row, to_pair(row)) == []
    row["chosen"], row["rejected"] = ([{"role": "system", "content": "Rhyme."}, *row[side]] for side in WHOLE)
    assert unread_columns(row, to_pair(row)) == ["system"]


def test_the_prompt_of_known_columns_is_read():
    row = {"system": "You write Python.", "input": QUESTION, "chosen": "```python\na", "rejected": "```python\nb"}
    assert to_pair(row).prompt == [{"role": "system", "content": "You write Python."}, user(QUESTION)]
    assert format_of(row) == "input"
    row = {"query": QUESTION, "history": [["Hi", "Hello."]], **BY_CHANCE}
    assert to_pair(row).prompt == [user("Hi"), assistant("Hello."), user(QUESTION)]
    assert unread_columns(row, to_pair(row)) == []


def test_names_are_judged_by_their_words():
    assert [name for name in ("prompt_id", "chosenModel", "avg-rating", "task", "prompt", "x") if is_fact(name)] == [
        "prompt_id", "chosenModel", "avg-rating",
    ]  # fmt: skip
    assert [name for name in ("user_prompt", "UserPrompt", "prompt_id", "answer") if is_prompt(name)] == [
        "user_prompt", "UserPrompt",
    ]  # fmt: skip
    sides = {name: side_of(name) for name in ("response_chosen", "dispreferred", "not_preferred", "chosen_rating", "q")}
    assert list(sides.values()) == ["chosen", "rejected", "rejected", None, None]
