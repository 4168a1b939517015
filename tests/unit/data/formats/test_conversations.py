"""Prompt and answers that repeat each other's turns mean one prompt and two answers, or are refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oddsmith.data.formats import PreferencePair, to_pair
from oddsmith.errors import RowError
from tests.pairs import assistant, user


def system(text):
    return {"role": "system", "content": text}


S, U, A, B = system("Be brief."), user("Sky?"), assistant("It is blue."), assistant("It is green.")
U0, A0 = user("Hi"), assistant("Hello.")
CALL = assistant("", tool_calls=[{"type": "function", "function": {"name": "look", "arguments": {}}}])
SEEN = {"role": "tool", "content": "blue"}


def row(prompt, chosen, rejected):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


# name -> (the row, its prompt); chosen is A, rejected is B
SAME = {
    "whole conversations with a system message": (row([U], [S, U, A], [S, U, B]), [S, U]),
    "a system message in front of the answers": (row([U], [S, A], [S, B]), [S, U]),
    "a system message on one side": (row([U], [S, U, A], [B]), [S, U]),
    "the same system message": (row([S, U], [S, U, A], [S, U, B]), [S, U]),
    "a developer's message": (row([S, U], [{**S, "role": "developer"}, U, A], [U, B]), [S, U]),
    "blanks around turns": (row([U], [user(" Sky?\n"), A], [user("Sky?"), B]), [U]),
    "the last question again": (row([U0, A0, U], [U, A], [U, B]), [U0, A0, U]),
    "the whole again": (row([S, U0, A0, U], [U0, A0, U, A], [S, U0, A0, U, B]), [S, U0, A0, U]),
    "earlier turns in the answers": (row([U], [U0, A0, U, A], [U0, A0, U, B]), [U0, A0, U]),
    "earlier turns in one answer": (row([U], [U0, A0, U, A], [U, B]), [U0, A0, U]),
    "the prompt as the earlier turns": (row([U0, A0], [U, A], [U, B]), [U0, A0, U]),
    "the chosen conversation as prompt": (row([S, U, A], [U, A], [U, B]), [S, U]),
    "the rejected conversation as prompt": (row([U0, A0, U, B], [U0, A0, U, A], [U0, A0, U, B]), [U0, A0, U]),
    "the chosen conversation as prompt of answers": (row([U, A], [A], [B]), [U]),
    "the chosen conversation as prompt of texts": (row([U, A], "It is blue.", "It is green."), [U]),
    "a conversation with a third answer as prompt": (row([U0, A0, U, A0], [U0, A0, U, A], [U0, A0, U, B]), [U0, A0, U]),
    "a greeting of the assistant": (row([A0, U], [A0, U, A], [A0, U, B]), [A0, U]),
    "a result of a tool in both answers": (row([U, CALL], [SEEN, A], [SEEN, B]), [U, CALL, SEEN]),
    "the question in front of answers of text": (row([S, U], "Sky?\nIt is blue.", "Sky?\n\nIt is green."), [S, U]),
    "a question and one whole conversation": (row("Sky?", [U, A], "It is green."), [U]),
    "a question and whole conversations with a system message": (row("Sky?", [S, U, A], [S, U, B]), [S, U]),
    "a question and whole conversations, a system message on one side": (row("Sky?", [S, U, A], [U, B]), [S, U]),
    "the first question of several": (row("Hi", [U0, A0, U, A], [U0, A0, U, B]), [U0, A0, U]),
    "the rendered conversation": (row("<user>Hi<user>Sky?<assistant>", [U0, A0, U, A], [U0, A0, U, B]), [U0, A0, U]),
}


@pytest.mark.parametrize(("given", "prompt"), SAME.values(), ids=SAME)
def test_turns_are_counted_once(given, prompt):
    assert to_pair(given) == PreferencePair(prompt, [A], [B])


def test_answers_of_several_turns_stay_so():
    assert to_pair(row([U0], [U0, A0, U, A], [B])) == PreferencePair([U0], [A0, U, A], [B])
    assert to_pair(row([U], [CALL, SEEN, A], [B])) == PreferencePair([U], [CALL, SEEN, A], [B])


@pytest.mark.parametrize(
    ("beginning", "chosen", "rejected", "rest"),
    [
        ("It is", "It is blue.", "It is green.", (" blue.", " green.")),
        ("It is ", "It is blue.", "It is green.", ("blue.", "green.")),
        ("It is\n", "It is blue.", "It is green.", ("blue.", "green.")),
        ("It is", " blue.", "It is green.", (" blue.", "It is green.")),
    ],
)
def test_answers_continue_the_assistants_turn_at_the_end_of_the_prompt(beginning, chosen, rejected, rest):
    pair = to_pair(row([U, assistant(beginning)], [assistant(chosen)], rejected))
    assert pair == PreferencePair([U, assistant(beginning)], [assistant(rest[0])], [assistant(rest[1])])


@pytest.mark.parametrize(
    ("given", "detail"),
    [
        (row([S, U], [system("Rhyme."), U, A], [U, B]), "different system messages, 'Be brief.' and 'Rhyme.'"),
        (row([U], [S, U, A], [system("Rhyme."), U, B]), "different system messages"),
        (row([U], [U0, A], [U, B]), "chosen begins with the user's turn 'Hi' and goes on unlike the prompt"),
        (row([U0, A0], [U, A], [user("Sea?"), B]), "chosen and rejected repeat different turns"),
        (row([U0, A0], [U0, B, U, A], [U, B]), "chosen begins with the user's turn 'Hi' and goes on"),
        (row([U, A], [U, A], [U0, B]), "begin with different questions"),
        (row("Sea?", [U, A], [U, B]), "the prompt 'Sea?' is none of the turns"),
        (row([], [U0, A0, U, A], [U0, A0, user("Sea?"), B]), "begins with the user's turn 'Sky?', which the other"),
        (row("Sky?", [U0, A], "It is green."), "chosen begins with the user's turn 'Hi'"),
        ({"messages": [U, A0], "chosen": [A], "rejected": "It is green."},
         "messages ends with the assistant's turn 'Hello.', which neither chosen nor rejected is"),
        ({"chosen": [S, U, A], "rejected": [system("Rhyme."), U, B]}, "different system messages"),
    ],
    ids=["system of the prompt", "systems of the answers", "question", "questions", "earlier answer", "conversation of"
         " one side", "text of the question", "implicit prompt", "text of the question, one side", "another answer",
         "implicit, system"],
)  # fmt: skip
def test_turns_that_contradict_each_other_are_refused(given, detail):
    with pytest.raises(RowError) as caught:
        to_pair(given)
    assert caught.value.reason == "prompt and answers disagree"
    assert detail in caught.value.detail


@given(st.lists(st.booleans(), min_size=1, max_size=3), st.booleans(), st.data())
def test_whatever_prompt_and_answers_repeat_is_one_conversation(uses_tools, has_system, data):
    dialogue = []
    for number, uses_tool in enumerate(uses_tools):
        between = [CALL, {**SEEN, "content": str(number)}] if uses_tool else []
        dialogue += [user(f"question {number}"), *between, assistant(f"answer {number}")]
    dialogue.pop()  # the answer to the last question
    starts = [position for position, turn in enumerate(dialogue) if turn["role"] == "user"]
    begins = data.draw(st.sampled_from(starts))  # the prompt has the turns from there, the answers those or all or none
    parts = [begins, *(data.draw(st.sampled_from([*starts, len(dialogue)] if begins == 0 else [0])) for _ in "cr")]
    systems = data.draw(st.lists(st.booleans(), min_size=3, max_size=3).filter(any)) if has_system else [False] * 3
    prompt, chosen, rejected = ([S] * has + dialogue[start:] for start, has in zip(parts, systems, strict=True))
    pair = to_pair(row(prompt, [*chosen, A], [*rejected, B]))
    assert pair == PreferencePair([S] * has_system + dialogue, [A], [B])
