"""The house style of the demo: what keeps it, what breaks it, and how sentences and words are counted."""

import pytest

from oddsmith.data.builtin.style import MAX_WORDS, keeps_style, sentences_in, style_faults, word_count

GOOD = [
    "The capital of Australia is Canberra. Many people guess Sydney, which is the largest city.",
    "Boil it for six minutes.",
    "Pi is about 3.14, and 22/7 comes close. Use 3.14159 for more.",
    "It arrives at 4:30 p.m. on Monday. Dr. Brown and Mrs. Lee will meet it.",
    "Martin Luther King Jr. led the peaceful fight for equal rights. His speech still gives people hope.",
    "The books by J. K. Rowling are popular. George R. R. Martin wrote others.",
    "Oranges are rich in vitamin C. One a day is plenty.",
    'Say, "Excuse me, could you tell me the way?" A smile always helps.',
    '"Are you there?" she asked, e.g. on the phone. He was.',
    "Bring fruit, nuts, etc. for the hike. Well... maybe some water too.",
    "The answer is no. You can ask again tomorrow.",
    "Thank you for your patience and for every lesson. I will remember them.",
    "I'm sorry to hear that. Rest well!",
    "Sure-footed goats live there. Goats are good questions to a climber!",
    "Here and there you see one. It is 2 * 3 * 4 meters, or 2*3*4, and -5 degrees.",
    "Good questions are short. As an island, Malta has many beaches.",
    "Congratulations, that\u2019s wonderful news! Celebrate \u201ctonight\u201d \u2013 you earned it.",
    "\n  Blot it right away.\n",
]

FAULTY = [
    ("", ["empty"]),
    ("  \n ...  ", ["empty"]),
    ("word " * MAX_WORDS + "more.", [f"{MAX_WORDS + 1} words (at most {MAX_WORDS})"]),
    ("| egg | six |", ["markdown", "unfinished"]),
    ("Boil it for about", ["unfinished"]),
    ("You can use the following:", ["unfinished"]),
    ("Sure! Here are two tips:\n1. **Sleep**.\n2. Drink and",
     ["4 sentences (at most 2)", "list", "preamble", "markdown", "unfinished"]),
]  # fmt: skip
# Answers with a single fault.
SINGLE = {
    "3 sentences (at most 2)": [
        "One is here. Two is here. Three is here.", "It ends at 5 p.m. Then we go. Be there.", "Is it? Yes! It is.",
        "It has vitamin C. It is cheap. It is good.", 'He said "Go." Then he said "Stop." Nobody moved.',
        "it is good. it is cheap. it is red.", "One line.\nAnother line.\n\nA third.",
    ],
    "list": [
        "- Sleep more.", "* Sleep.\n* Drink.", "\u2022 Sleep.", "1. Sleep.\n2. Drink.", "a) Sleep.\nb) Drink.",
        "Two tips: 1) sleep, 2) drink.",
    ],
    "preamble": [
        "Sure! Boil it.", "Certainly, boil it.", "Of course! Boil it.", "Great question! Boil it.",
        "That\u2019s a great question. Boil it.", "What an interesting question! Boil it.",
        "Here are some tips on eggs.", "Here's how you do it.", "I'd be happy to help. Boil it.",
        "As an AI language model, I can't eat.", "Thank you for asking. Boil it.",
    ],
    "markdown": [
        "## Eggs\nBoil them.", "Boil **them** now.", "Boil *them* now.", "Use `boil` now.",
        "See [this page](https://example.org).", "> Boil them.",
    ],
}  # fmt: skip
FAULTY += [(answer, [fault]) for fault, answers in SINGLE.items() for answer in answers]


@pytest.mark.parametrize("answer", GOOD)
def test_a_good_answer_has_no_faults(answer):
    assert style_faults(answer) == []
    assert keeps_style(answer)


@pytest.mark.parametrize(("answer", "faults"), FAULTY)
def test_every_fault_is_named(answer, faults):
    assert style_faults(answer) == faults
    assert not keeps_style(answer)


def test_the_limits_themselves_are_allowed():
    answer = "One. " + "word " * (MAX_WORDS - 2) + "end."
    assert word_count(answer) == MAX_WORDS
    assert keeps_style(answer)


def test_sentences_come_back_whole_and_in_order():
    text = 'Mr. Hill paid $3.50 (a lot!). "Why?" she asked.\nNo mark here'
    assert sentences_in(text) == ["Mr. Hill paid $3.50 (a lot!).", '"Why?" she asked.', "No mark here"]


def test_words_hold_a_letter_or_digit():
    assert word_count("A ten-minute walk - or 3.5 miles & more!") == 7
