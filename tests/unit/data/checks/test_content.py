"""What counts as a refusal, an echo, repetition, a control token, personal data and a wrong order of roles."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oddsmith.data.checks.content import echoes, has_control_text, is_refusal, personal_data, repeats_itself, role_fault
from tests.unit.data.checks.test_survey import LOOP

REFUSED = (
    "I'm sorry, but I can't assist with that request.", "I’m sorry, I won’t do that.",
    "I cannot provide medical advice.", "I apologize, but I am unable to browse the web.",
    "Unfortunately I can't open links.", "As a language model, I do not have opinions.", "抱歉，我无法回答这个问题。",
    "Lo siento, pero no puedo ayudarte.",
)  # fmt: skip
ANSWERED = (
    "I'm sorry to hear that. Call your mother first.", "You cannot help everyone.",
    "I can't wait to tell you: it is Paris.", "Sorry is a Canadian word; so is toque.", "An AI can be wrong.",
    "Boil it for six minutes. " * 8 + "I'm sorry, but I can't help more.",
)  # fmt: skip


@pytest.mark.parametrize("answer", REFUSED)
def test_refusals_are_known(answer):
    assert is_refusal(answer)


@pytest.mark.parametrize("answer", ANSWERED)
def test_answers_are_no_refusals(answer):
    assert not is_refusal(answer)


def test_an_echo_is_the_whole_question():
    assert echoes("What is the capital of France?", '"What is the  capital of France?" Paris.')
    assert not echoes("What is the capital of France?", "What is the capital? Paris.")
    assert not echoes("Hello there!", "Hello there! How are you?")  # too short to be more than manners


@pytest.mark.parametrize(
    ("text", "repeats"),
    [
        (LOOP, True),
        ("天空在晴朗的日子里是蓝色的，因为空气散射阳光中的短波部分。" * 6, True),
        ("Yes. " * 8, False),
        (" ".join(str(number) for number in range(300)), False),
        ("".join(chr(0x4E00 + number * 7) for number in range(400)), False),
    ],
)
def test_repeated_runs(text, repeats):
    assert repeats_itself(text) is repeats


@given(st.lists(st.sampled_from("abc"), max_size=70), st.integers(1, 4), st.integers(0, 20))
def test_repetition_is_what_its_definition_says(words, times, others):
    words = words * times + [str(number) for number in range(others)]
    runs = [tuple(words[start : start + 10]) for start in range(len(words) - 9)]
    assert repeats_itself(" ".join(words)) is (len(runs) >= 10 and 1 - len(set(runs)) / len(runs) > 0.1)


@given(st.lists(st.integers(0, 10**9), unique=True, max_size=80))
def test_words_that_differ_repeat_nothing(numbers):
    assert not repeats_itself(" ".join(map(str, numbers)))


@pytest.mark.parametrize(
    "text",
    ["<|im_start|>user", "a <|eot_id|>", "[INST] Hi", "<<SYS>>", "<start_of_turn>model", "</s>", "<｜User｜>", "<unk>"],
)
def test_control_tokens_are_known(text):
    assert has_control_text(text)


@pytest.mark.parametrize(
    "text", ["a < b || c > d", "[INSTALL]", "<span>", "x <| y", "list[str]", "<section>", "the <s2> tag"]
)
def test_other_text_holds_no_control_tokens(text):
    assert not has_control_text(text)


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("mail bob@firm.co.uk now", ["e-mail"]),
        ("mail bob@example.com, or user@mail.example.org", []),
        ("@bob, see decorator @property.setter", []),
        ("ghp_" + "a1" * 18, ["key"]),
        ("-----BEGIN RSA PRIVATE KEY-----", ["key"]),
        ("a task-based approach; sk-learn; AKIA", []),
        ("x@y.de hf_" + "Q" * 34, ["e-mail", "key"]),
    ],
)
def test_personal_data(text, kinds):
    assert personal_data(text) == kinds


@pytest.mark.parametrize(
    ("roles", "fault"),
    [
        ("system user assistant user assistant", None),
        ("user assistant tool assistant", None),
        ("user assistant tool tool assistant", None),
        ("assistant user assistant", "begins with the assistant"),
        ("user user assistant", "two turns of the user in a row"),
        ("user assistant assistant", "two turns of the assistant in a row"),
        ("user system assistant", "system message in the middle"),
    ],
)
def test_the_order_of_roles(roles, fault):
    assert role_fault([{"role": role, "content": ""} for role in roles.split()]) == fault
