"""Rows of platforms, annotation tools and comparisons: read, told apart, left out where they prefer nothing."""

import json

import datasets
import pytest

from oddsmith.data.formats import PreferencePair, format_of, restated, to_pair, unread_columns
from oddsmith.data.formats.layouts import LAYOUTS as KNOWN
from oddsmith.data.sources.naming import named_row
from oddsmith.errors import DataError, RowError, UndecidedRow
from tests.layouts import AB, BLUE, GREEN, LAYOUTS, NUMBERED, PROMPTS, QUESTION, assistant, user

PAIR = PreferencePair([user()], [assistant(BLUE)], [assistant(GREEN)])
ROWS = [(name, kind, row) for name, rows in LAYOUTS.items() for kind, row in rows.items()]
IDS = [f"{name}: {kind}" for name, kind, _ in ROWS]


@pytest.mark.parametrize(("name", "kind", "row"), ROWS, ids=IDS)
def test_a_row_is_read_as_what_it_is_and_as_nothing_else(name, kind, row):
    pair = to_pair(row)
    assert (pair.prompt, pair.chosen, pair.rejected) == (
        [user(PROMPTS.get(name, QUESTION))],
        PAIR.chosen,
        PAIR.rejected,
    )
    assert format_of(row) == name
    assert [layout.name for layout in KNOWN if layout.fits(row)] == [name]
    assert unread_columns(row, pair) == []


def test_every_layout_has_an_example():
    assert [layout.name for layout in KNOWN] == list(LAYOUTS)


@pytest.mark.parametrize(("name", "kind", "row"), ROWS, ids=IDS)
def test_arrow_changes_nothing(name, kind, row):
    (again,) = datasets.Dataset.from_list([row])
    assert to_pair(again) == to_pair(row)
    assert format_of(again) == name


@pytest.mark.parametrize(("name", "kind", "row"), ROWS, ids=IDS)
def test_a_pair_that_is_given_goes_first(name, kind, row):
    given = {"prompt": "Hi", "chosen": "a", "rejected": "b"}
    assert to_pair(row | given) == PreferencePair("Hi", "a", "b")


def test_tools_and_system_messages_of_platforms_are_read():
    tool = {"type": "function", "function": {"name": "look"}}
    openai = LAYOUTS["OpenAI"]["OpenAI"] | {"input": {"messages": [user()], "tools": [tool]}}
    assert to_pair(openai).tools == [tool]
    system = {"role": "system", "content": "Be brief."}
    for row in (
        LAYOUTS["Amazon Nova"]["Nova"] | {"system": [{"text": "Be brief."}]},
        LAYOUTS["Gemini"]["Gemini"] | {"systemInstruction": {"parts": [{"text": "Be "}, {"text": "brief."}]}},
        LAYOUTS["Gemini"]["Gemini"] | {"system_instruction": {"role": "system", "parts": [{"text": "Be brief."}]}},
        LAYOUTS["ms-swift"]["query"] | {"system": "Be brief."},
        AB | {"winner": "b", "system": "Be brief."},
    ):
        assert to_pair(row).prompt == [system, user()]


def test_earlier_turns_belong_to_the_prompt():
    row = LAYOUTS["ms-swift"]["query"] | {"history": [["Hi", "Hello."]]}
    assert to_pair(row).prompt == [user("Hi"), assistant("Hello."), user()]
    row = LAYOUTS["ms-swift"]["messages"]
    row = row | {"messages": [user("Hi"), assistant("Hello."), *row["messages"]]}
    assert to_pair(row).prompt == [user("Hi"), assistant("Hello."), user()]


def test_conversations_of_several_turns_part_where_the_answers_do():
    first, second = ([user(), assistant(text), user("Why?"), assistant(text)] for text in (BLUE, GREEN))
    pair = to_pair({"conversation_a": first, "conversation_b": second, "winner": "model_a"})
    assert pair == PreferencePair([user()], first[1:], second[1:])
    kaggle = {
        "prompt": json.dumps([QUESTION, "Why?"]), "response_a": json.dumps([BLUE, BLUE]),
        "response_b": json.dumps([GREEN, GREEN]), "winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0,
    }  # fmt: skip
    assert to_pair(kaggle) == pair


def test_of_a_conversation_the_turn_that_was_judged_is_the_last():
    first, second = ([user(), assistant(text), user("Why?"), assistant(text)] for text in (BLUE, GREEN))
    row = {"judge": "expert_1", "conversation_a": first, "conversation_b": second, "winner": "model_a", "turn": 1}
    assert to_pair(row) == PAIR
    assert to_pair(row | {"turn": 2}).chosen == first[1:]


@pytest.mark.parametrize("choice", [1, 1.0, "1", "1.0"])
def test_a_summary_is_asked_for_as_in_the_paper(choice):
    row = LAYOUTS["summaries"]["summarize_from_feedback"] | {"choice": choice}
    post = {"subreddit": "sky", "title": "Look", "post": " Up.\n", "article": None}
    pair = to_pair(row | {"info": post})
    assert pair == PreferencePair(
        [user("SUBREDDIT: r/sky\n\nTITLE: Look\n\nPOST: Up.\n\nTL;DR:")], PAIR.chosen, PAIR.rejected
    )
    article = {"subreddit": None, "title": "Look", "post": None, "article": "Up."}
    assert to_pair(row | {"info": json.dumps(article)}).prompt == [user("Look\n\nUp.\n\nTL;DR:")]
    first = to_pair(row | {"choice": 0})
    assert (first.chosen, first.rejected) == (PAIR.rejected, PAIR.chosen)


UNDECIDED = [
    ("tie", AB | {"winner": "tie"}),
    ("tie", AB | {"winner": "Equal"}),
    ("tie", AB | {"verdict": "A=B"}),
    ("tie", AB | {"winner": "both"}),
    ("tie", AB | {"verdict": "[[C]]"}),
    ("no judgement", LAYOUTS["summaries"]["summarize_from_feedback"] | {"choice": None}),
    ("tie, both bad", AB | {"winner": "tie (bothbad)"}),
    ("tie, both bad", AB | {"winner": "both_bad"}),
    ("tie, both bad", AB | {"winner": "neither"}),
    ("tie", NUMBERED | {"overall_preference": 0}),
    ("tie", NUMBERED | {"preference": 0}),
    ("tie", AB | {"winner_model_a": 0, "winner_model_b": 0, "winner_tie": 1}),
    ("tie", NUMBERED | {"score_1": 3, "score_2": 3.0}),
    ("tie", {"prompt": QUESTION, "responses": [BLUE, GREEN], "ratings": [1, 1]}),
    ("no judgement", AB | {"winner": None}),
    ("no judgement", AB | {"winner": " "}),
    ("no judgement", AB | {"winner_model_a": 0, "winner_model_b": 0, "winner_tie": 0}),
    ("no judgement", NUMBERED | {"score_1": 3, "score_2": "N/A"}),
    ("no judgement", {"prompt": QUESTION, "responses": [BLUE], "ratings": [1]}),
    ("one answer only", AB | {"winner": "a", "response_b": None}),
    ("one answer only", {"input": {"messages": [user()]}, "preferred_output": None, "non_preferred_output": GREEN}),
    ("one answer only", LAYOUTS["ms-swift"]["messages"] | {"rejected_response": None}),
    ("one answer only", LAYOUTS["answers with a winner or scores"]["arena, Kaggle"] | {"response_a": "[null]"}),
    ("tie", LAYOUTS["Gemini"]["Gemini"] | {"completions": [{"score": 1, "completion": {"parts": []}}] * 2}),
    ("no judgement", LAYOUTS["Label Studio"]["pairwise"] | {"annotations": []}),
    ("no judgement", LAYOUTS["Label Studio"]["pairwise"]
     | {"annotations": [{"was_cancelled": True, "result": [{"value": {"selected": "left"}}]}]}),
    ("no judgement", LAYOUTS["Argilla"]["2, ranking"] | {"responses": {}}),
    ("no judgement", LAYOUTS["Argilla"]["2, flat"] | {"preference.responses.status": ["discarded"]}),
    ("judges disagree", LAYOUTS["Argilla"]["2, flat"] | {"preference.responses": ["response-2", "response-1"]}),
    ("tie", LAYOUTS["Argilla"]["2, ranking"]
     | {"responses": {"ranking": [{"value": [f"response-{n}" for n in order]} for order in ((1, 2), (2, 1))]}}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("reason", "row"), UNDECIDED, ids=[f"{number} {reason}" for number, (reason, _) in enumerate(UNDECIDED)]
)
def test_a_row_that_prefers_neither_answer_is_left_out_with_the_reason(reason, row):
    with pytest.raises(UndecidedRow) as caught:
        to_pair(row)
    assert caught.value.reason == reason
    assert "\n" not in str(caught.value)


def test_several_people_are_counted_and_averaged():
    row = LAYOUTS["Argilla"]["2, flat"]
    assert to_pair(row | {"preference.responses": ["response-2", "response-1", "response-2"]}) == PAIR
    ranked = [["response-1", "response-2"], ["response-2", "response-1"], ["response-2", "response-1"]]
    row = LAYOUTS["Argilla"]["2, ranking"]
    assert to_pair(row | {"responses": {"ranking": [{"value": order} for order in ranked]}}) == PAIR


def test_a_suggestion_counts_only_where_nobody_has_responded():
    row = LAYOUTS["Argilla"]["2, flat"] | {"preference.suggestion": "response-1"}
    assert to_pair(row) == PAIR


@pytest.mark.parametrize(
    "others",
    [{"quality": 1}, {"language": "English"}, {"comment": "A nice one", "difficulty": 1}, {"comment": "None"}],
    ids=["a rating", "a label", "two", "a comment that reads like a tie"],
)
def test_other_questions_of_annotators_are_no_verdicts(others):
    given = {**others, "which": "response-2"}
    responses = {question: [{"value": value, "status": "submitted"}] for question, value in given.items()}
    record = LAYOUTS["Argilla"]["2, ranking"] | {"responses": responses}
    assert to_pair(record) == PAIR
    del responses["which"]
    with pytest.raises(RowError):
        to_pair(record)


FAULTS = [
    ("missing column", "response_a and response_b are answers, and none that says which is better; expected chosen and"
     " rejected, a column winner (a or b), or score_a and score_b", AB),
    ("unknown winner", "winner is 'gpt'; expected a, b or tie", AB | {"winner": "gpt"}),
    ("unknown winner", "winner is 'gpt'; expected a, b or tie",
     AB | {"winner": "gpt", "model_a": "gpt", "model_b": "gpt"}),
    ("missing column", "none that says which is better", AB | {"toxicity_score_a": 0.1, "toxicity_score_b": 0.9}),
    ("unknown winner", "winner is 'A and B'; expected", AB | {"winner": "A and B"}),
    ("unknown winner", "winner is 1, which may mean any of a and b; name the better answer (a or b) in a column winner",
     AB | {"winner": 1}),
    ("unknown winner", "preference is 2, which may mean answer 2, or that the second one is better by 2",
     NUMBERED | {"preference": 2}),
    ("unknown winner", "winner is 0, which may mean a tie, or the first answer where they are counted from 0",
     NUMBERED | {"winner": 0}),
    ("unknown winner", "label is 1, which may count the answers from 0 or from 1", NUMBERED | {"label": 1}),
    ("unknown winner", "label is 0, which may count the answers from 0 or from 1", NUMBERED | {"label": "0"}),
    ("unknown winner", "choice is 2 of 2 summaries; expected 0 or 1 of two",
     LAYOUTS["summaries"]["summarize_from_feedback"] | {"choice": 2}),
    ("malformed summaries", "summaries is a number", {"info": {}, "summaries": 1, "choice": 0}),
    ("malformed info", "info is a number", {"info": 1, "summaries": [], "choice": 0}),
    ("unknown winner", "2 flags of the winner are set; expected one",
     AB | {"winner_model_a": 1, "winner_model_b": 1, "winner_tie": 0}),
    ("unknown winner", "winner is ['a']; expected a, b or tie", AB | {"winner": ["a"]}),
    ("unknown winner", "safer and better_style prefer different answers; keep one of them",
     LAYOUTS["Argilla"]["2, ranking"] | {"responses": {
         "safer": [{"value": "response-1"}], "better_style": [{"value": "response-2"}]}}),
    ("unknown winner", "the ranking names 'response-3', which is none of the answers",
     LAYOUTS["Argilla"]["2, ranking"] | {"responses": {"ranking": [{"value": ["response-3", "response-1"]}]}}),
    ("unknown winner", "the ranker has the buckets x, y; expected one, or such as best and worst",
     LAYOUTS["Label Studio"]["ranker"] | {"annotations": [{"result": [
         {"from_name": "r", "value": {"ranker": {"x": ["x"], "y": ["y"]}}}]}]}),
    ("missing column", "the fields prompt hold no two answers",
     LAYOUTS["Label Studio"]["pairwise"] | {"data": {"prompt": QUESTION}}),
    ("malformed input", "input has the keys turns; expected messages",
     LAYOUTS["OpenAI"]["OpenAI"] | {"input": {"turns": []}}),
    ("malformed input", "input is a number", LAYOUTS["OpenAI"]["OpenAI"] | {"input": 3}),
    ("last turn is not the assistant's", "messages does not end with the chosen answer of 'assistant'",
     {"messages": [user()], "rejected_response": GREEN}),
    ("malformed candidates", "the candidates have the labels preferred; expected preferred and non-preferred",
     {"messages": [user(), {"role": "assistant", "candidates": [{"content": "a", "preferenceLabel": "preferred"}]}]}),
    ("image, sound or video", "content[0] is of the type 'image'", {"messages": [
        {"role": "user", "content": [{"image": {"format": "png"}}]}, LAYOUTS["Amazon Nova"]["Nova"]["messages"][1]]}),
    ("malformed message", "contents[0] is an object without parts",
     LAYOUTS["Gemini"]["Gemini"] | {"contents": [{"role": "user"}]}),
    ("malformed scores", "ratings is a list of 1; expected a list of 2, one number for each of generations",
     {"prompt": QUESTION, "generations": [BLUE, GREEN], "ratings": [1]}),
    ("response is not text", "responses[0] is a number", {"prompt": "a", "responses": [1, 2], "scores": [1, 2]}),
    ("no prompt", "give it in a column prompt", {"response_a": BLUE, "response_b": GREEN, "winner": "a"}),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "detail", "row"), FAULTS, ids=[text[:40] for _, text, _ in FAULTS])
def test_a_fault_is_named_and_can_be_counted(reason, detail, row):
    with pytest.raises(RowError) as caught:
        to_pair(row)
    assert caught.value.reason == reason
    assert detail in caught.value.detail
    assert not isinstance(caught.value, UndecidedRow)


@pytest.mark.parametrize(("name", "chosen"), [("winner", GREEN), ("overall_preference", BLUE)])
def test_a_number_that_may_mean_two_things_is_read_under_either_name(name, chosen):
    assert to_pair(named_row(NUMBERED | {"preference": 1}, {name: "preference"})).chosen == [assistant(chosen)]


def test_answers_without_a_verdict_are_of_no_format():
    with pytest.raises(DataError, match="none that says which is better"):
        format_of(AB)


def test_scores_go_with_the_restated_row():
    row = restated(AB | {"winner": "b", "score_a": 5, "score_b": 2})
    assert (row["score_chosen"], row["score_rejected"]) == (2, 5)
    assert restated(NUMBERED | {"overall_preference": 3})["score_chosen"] == 3
    assert "score_chosen" not in restated(AB | {"winner": "b"})
    assert restated({"prompt": "a"}) == {"prompt": "a"}


def test_the_margin_of_the_scores_goes_with_the_pair():
    assert to_pair(NUMBERED | {"score_1": 1, "score_2": "3,5"}).score_margin == 2.5
    assert to_pair(NUMBERED | {"overall_preference": -2}).score_margin == 2
    assert to_pair(NUMBERED | {"rank_1": 1, "rank_2": 2}).score_margin is None
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    assert to_pair(pair | {"rating_chosen": 1, "rating_rejected": 4}).score_margin == -3


def test_a_column_that_may_be_a_part_of_the_prompt_is_told():
    row = AB | {"winner": "b", "context": "The sun has set."}
    assert unread_columns(row, to_pair(row)) == ["context"]
