"""Prompts that hide in text: HH transcripts, and two texts with a common beginning."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oddsmith.data.formats import PreferencePair, to_pair
from oddsmith.data.formats.transcripts import (
    is_hh_dialogue,
    parse_hh_dialogue,
    split_shared_prompt,
    split_shared_words,
    strip_repeated_prompt,
)
from oddsmith.errors import RowError


def turns(text):
    return [(message["role"], message["content"]) for message in parse_hh_dialogue(text)]


def test_a_transcript_becomes_its_turns():
    text = "\n\nHuman: Hi there\n\nAssistant: Hello.\n\nHow can I help?\n\nHuman: Humans: a list \n\nAssistant: No."
    assert turns(text) == [
        ("user", "Hi there"),
        ("assistant", "Hello.\n\nHow can I help?"),
        ("user", "Humans: a list"),
        ("assistant", "No."),
    ]


def test_the_first_break_may_be_missing_and_an_answer_empty():
    assert turns("Human: Hi\n\nAssistant:") == [("user", "Hi"), ("assistant", "")]


def test_two_turns_of_one_role_become_two_paragraphs():
    text = "\n\nHuman: Price?\n\nAssistant: One moment ...\n\nAssistant: About $50.\n\nAssistant: "
    assert turns(text) == [("user", "Price?"), ("assistant", "One moment ...\n\nAbout $50.")]


@pytest.mark.parametrize("column", ["prompt", "messages", "conversation", "question", "query", "input"])
def test_a_transcript_is_a_prompt_in_every_column(column):
    prompt = "\n\nHuman: Is it far?\n\nAssistant: Yes.\n\nHuman: How far?\n\nAssistant:"
    turns = [{"role": role, "content": text} for role, text in parse_turns("Is it far?", "Yes.", "How far?")]
    answers = [{"role": "assistant", "content": text} for text in ("3 km.", "A day.")]
    expected = PreferencePair(turns, answers[:1], answers[1:])
    assert to_pair({column: prompt, "chosen": " 3 km.", "rejected": " A day."}) == expected
    assert to_pair({column: prompt, "chosen": f"{prompt} 3 km.", "rejected": f"{prompt} A day."}) == expected


def parse_turns(*texts):
    return [("user" if number % 2 == 0 else "assistant", text) for number, text in enumerate(texts)]


@pytest.mark.parametrize(
    "text", ["User: Hi\nAssistant: Hello\nUser: Bye", "<|im_start|>user\nHi<|im_end|>", "Human: Hi"]
)
def test_other_dialogues_are_no_messages(text):
    with pytest.raises(RowError, match="malformed message: conversation holds turns as text, '"):
        to_pair({"conversation": text, "chosen": "a", "rejected": "b"})


def test_answers_that_begin_alike_keep_their_beginning():
    shared = "\n\nHuman: Is it far?\n\nAssistant: Yes.\n\nHuman: How far?\n\nAssistant: It is about"
    pair = to_pair({"chosen": f"{shared} 3 km.", "rejected": f"{shared} a day away.\n\nAssistant: Or two."})
    assert pair == PreferencePair(
        [
            {"role": "user", "content": "Is it far?"},
            {"role": "assistant", "content": "Yes."},
            {"role": "user", "content": "How far?"},
        ],
        [{"role": "assistant", "content": "It is about 3 km."}],
        [{"role": "assistant", "content": "It is about a day away.\n\nOr two."}],
    )


def test_identical_transcripts_keep_their_last_answer():
    text = "\n\nHuman: Hi\n\nAssistant: Hello."
    assert to_pair({"chosen": text, "rejected": text}).chosen == [{"role": "assistant", "content": "Hello."}]


@pytest.mark.parametrize("text", ["Human resources: hi", "Assistant: Hi\n\nHuman: Hi", "\n\nHuman: Hi\nAssistant: Hi"])
def test_other_text_is_no_transcript(text):
    assert not is_hh_dialogue(text)


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected"),
    [
        ("Q: Which is bigger?\nA:", " The sun is.", " The moon is."),
        ("Q: Which?\nA: the sun\nB: the moon\n", "The sun.", "The moon."),
        ("### Instruction:\nAdd 2 and 2.\n\n### Response:\n", "It is 4.", "It is 5."),
        ("User: Hi\nAssistant: Hello.\nUser: Bye\nAssistant:", " See you.", " See me."),
        ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "Hello.<|im_end|>", "Hey.<|im_end|>"),
        ("[INST] Hi [/INST]", " Hello.", " Hey."),
        ("Which is bigger?\n", "The sun is.", "The moon is."),
        ("Read this.\n\nIt is long.\n", "Answer one", "Answer two"),
        ("Hi\n", "", "Hello."),
    ],
)
def test_the_shared_text_is_cut_back_to_a_turn_boundary(prompt, chosen, rejected):
    assert split_shared_prompt(prompt + chosen, prompt + rejected) == (prompt, chosen, rejected)


def test_the_middle_of_a_line_is_no_boundary():
    assert split_shared_prompt("The sky is blue.", "The sky is green.") is None


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected"),
    [
        ("The sky is", " blue.", " green."),
        ("The sky is", " blue.", " black."),
        ("The sky is ", " blue.", " black."),
        ("The sky", " is", " is blue"),
        ("The sky", " is", " is"),
        ("Der Himmel", " über uns", " übers Meer"),
        ("I like", " 👨‍👩‍👧", " 👨‍👩‍👦"),
        ("天空是", "蓝色的。", "绿色的。"),
        ("空は", "青い", "青"),
        ("天空", "是", "是蓝色的。"),
        ("ท้อง", "ฟ้า", "ฟี้"),
        ("Sky是", "blue", "black"),
    ],
)
def test_the_shared_words_are_a_prompt(prompt, chosen, rejected):
    assert split_shared_words(prompt + chosen, prompt + rejected) == (prompt, chosen, rejected)


@pytest.mark.parametrize(
    ("chosen", "rejected"), [("Blue.", "Green."), ("Blue.", "Black."), (" a", " b"), ("", "a"), ("Yes", "Yes, Sir")]
)
def test_without_a_shared_word_there_is_no_prompt(chosen, rejected):
    assert split_shared_words(chosen, rejected) is None


@given(st.text("ab 天ั"), st.text("ab 天ั", max_size=4), st.text("ab 天ั", max_size=4))
def test_shared_words_lose_no_character_and_leave_both_an_answer(shared, chosen, rejected):
    parts = split_shared_words(shared + chosen, shared + rejected)
    if parts is not None:
        assert (parts[0] + parts[1], parts[0] + parts[2]) == (shared + chosen, shared + rejected)
        assert all(parts)
        assert parts[1][0] == parts[2][0] == " " or parts[0][-1] in "天ั"


@given(st.text("aA:Q\n #", max_size=30), st.text("ab\n", max_size=10), st.text("ab\n", max_size=10))
def test_a_split_loses_no_character_and_never_ends_in_a_word(shared, chosen, rejected):
    parts = split_shared_prompt(shared + chosen, shared + rejected)
    if parts is None:
        return
    assert (parts[0] + parts[1], parts[0] + parts[2]) == (shared + chosen, shared + rejected)
    assert parts[0][-1] in "\n:"


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "answers"),
    [
        ("Hi", "Hi\nHello.", "Hi\nBye.", ("\nHello.", "\nBye.")),
        ("Q: Hi\nA:", "Q: Hi\nA: Yes", "Q: Hi\nA: No", (" Yes", " No")),
        ("Hi", "Hi there", "Hi you", ("Hi there", "Hi you")),
        ("Hi", "Hi\nHello.", "Hi you", ("Hi\nHello.", "Hi you")),
        ("", "\na", "\nb", ("\na", "\nb")),
    ],
)
def test_a_short_repeated_prompt_needs_a_boundary(prompt, chosen, rejected, answers):
    assert strip_repeated_prompt(prompt, chosen, rejected) == answers
