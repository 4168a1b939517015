"""Rows of every known format become the pair they mean; faulty ones say what is wrong in words that can be counted."""

import datasets
import pytest

from oddsmith.data.formats import PreferencePair, format_of, to_pair
from oddsmith.errors import DataError, RowError


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


SKY = [user("What color is the sky?")]
BLUE, GREEN = [assistant("It is blue.")], [assistant("It is green.")]
SKY_PAIR = PreferencePair(SKY, BLUE, GREEN)
TEXTS = {"chosen": "It is blue.", "rejected": "It is green."}
TOOL = {"type": "function", "function": {"name": "look_up"}}

# One row a format, each meaning SKY_PAIR.
SAME_PAIR = {
    "conversational": {"prompt": SKY, "chosen": BLUE, "rejected": GREEN},
    "conversational, text beside messages": {"prompt": SKY, "chosen": "It is blue.", "rejected": GREEN},
    "conversational, prompt repeated": {"prompt": SKY, "chosen": SKY + BLUE, "rejected": SKY + GREEN},
    "conversational, prompt repeated as text": {
        "prompt": "What color is the sky?", "chosen": SKY + BLUE, "rejected": SKY + GREEN, "prompt_id": "1",
        "messages": SKY + BLUE, "score_chosen": 8.0, "score_rejected": 2.0,
    },
    "conversational, prompt as text": {"prompt": "What color is the sky?", "chosen": BLUE, "rejected": GREEN},
    "conversational, one message each": {"prompt": SKY[0], "chosen": BLUE[0], "rejected": GREEN[0]},
    "conversational, empty prompt": {"prompt": [], "chosen": SKY + BLUE, "rejected": SKY + GREEN},
    "conversational, implicit prompt": {"chosen": SKY + BLUE, "rejected": SKY + GREEN},
    "content in parts": {
        "prompt": [{"role": "user", "content": [{"type": "text", "text": "What color "}, "is the sky?"]}],
        "chosen": [{"role": "assistant", "content": [{"type": "text", "text": "It is blue.", "image": None}]}],
        "rejected": GREEN,
    },
    "from and value": {
        "prompt": [{"from": "human", "value": "What color is the sky?"}],
        "chosen": [{"from": "gpt", "value": "It is blue."}],
        "rejected": [{"from": "assistant", "value": "It is green."}],
    },
    "ShareGPT": {
        "conversations": [{"from": "human", "value": "What color is the sky?"}],
        "chosen": {"from": "gpt", "value": "It is blue."},
        "rejected": {"from": "gpt", "value": "It is green."},
    },
    "ShareGPT, answers as text": {"conversations": [{"from": "human", "value": "What color is the sky?"}], **TEXTS},
    "messages": {"messages": SKY, **TEXTS},
    "messages, answers as messages": {"messages": SKY, "chosen": BLUE[0], "rejected": GREEN},
    "messages that hold the chosen answer": {"messages": SKY + BLUE, "chosen": SKY + BLUE, "rejected": SKY + GREEN},
    "conversation": {"conversation": SKY, **TEXTS},
    "turns of another form beside whole conversations": {
        "conversation": [{"input": "What color is the sky?", "output": "Blue"}], "chosen": SKY + BLUE,
        "rejected": SKY + GREEN,
    },
    "question": {"question": "What color is the sky?", **TEXTS},
    "query": {"query": "What color is the sky?", "history": [], **TEXTS},
    "query, another column null": {"prompt": None, "query": "What color is the sky?", **TEXTS},
    "question as messages": {"question": SKY, **TEXTS},
    "input": {"input": "What color is the sky?", "system": None, **TEXTS},
    "question, repeated": {
        "question": "What color is the sky?", "chosen": "What color is the sky?\nIt is blue.",
        "rejected": "What color is the sky?\nIt is green.",
    },
    "Alpaca": {"instruction": "What color is the sky?", "input": "", **TEXTS},
    "Alpaca, no input": {"instruction": "What color is the sky?", "input": None, **TEXTS},
    "Alpaca, output of two": {"instruction": "What color is the sky?", "output": ["It is blue.", "It is green."]},
    "UltraFeedback": {
        "instruction": "What color is the sky?",
        "completions": [
            {"response": "Purple?", "overall_score": 5.0},
            {"response": "It is green.", "overall_score": 1.0},
            {"response": "It is blue.", "overall_score": 9.5},
        ],
    },
    "HH dialogue": {
        "prompt": "\n\nHuman: What color is the sky?\n\nAssistant:", "chosen": " It is blue.",
        "rejected": " It is green.",
    },
    "HH dialogue beside a prompt": {
        "prompt": "What color is the sky?",
        "chosen": "\n\nHuman: What color is the sky?\n\nAssistant: It is blue.",
        "rejected": "\n\nHuman: What color is the sky?\n\nAssistant: It is green.",
    },
    "HH dialogue, implicit prompt": {
        "chosen": "\n\nHuman: What color is the sky?\n\nAssistant: It is blue.",
        "rejected": "\n\nHuman: What color is the sky?\n\nAssistant: It is green.",
    },
    "text with a column for the system message, empty": {"prompt": "What color is the sky?", **TEXTS, "system": ""},
}  # fmt: skip


@pytest.mark.parametrize("row", SAME_PAIR.values(), ids=SAME_PAIR)
def test_every_way_of_writing_a_conversation_means_the_same_pair(row):
    assert to_pair(row) == SKY_PAIR
    assert to_pair(row).is_conversational


def test_formats_are_known_by_name():
    for name in (
        "conversational", "conversational, implicit prompt", "ShareGPT", "messages", "question", "Alpaca", "input",
        "UltraFeedback", "HH dialogue", "HH dialogue, implicit prompt",
    ):  # fmt: skip
        assert format_of(SAME_PAIR[name]) == name


def test_text_stays_text():
    row = {"prompt": "The sky is", "chosen": " blue.", "rejected": " green.", "source": "a book"}
    assert to_pair(row) == PreferencePair("The sky is", " blue.", " green.")
    assert not to_pair(row).is_conversational
    assert format_of(row) == "standard"


def test_a_text_prompt_that_both_answers_repeat_is_stripped():
    row = {
        "prompt": "What color is the sky?",
        "chosen": "What color is the sky? It is blue.",
        "rejected": "What color is the sky? It is green.",
    }
    assert to_pair(row) == PreferencePair("What color is the sky?", " It is blue.", " It is green.")


@pytest.mark.parametrize(
    "texts",
    [
        ("Hello!", "Hello! How are you?", "Hello! What?"),
        ("Say that the sky is blue.", "Say that the sky is blue. Ok.", "No."),
    ],
    ids=["a greeting that both return", "one answer"],
)
def test_a_prompt_that_answers_repeat_as_their_own_words_is_part_of_them(texts):
    assert to_pair(dict(zip(("prompt", "chosen", "rejected"), texts, strict=True))) == PreferencePair(*texts)


def test_the_implicit_prompt_leaves_each_side_its_last_turn():
    longer = [*SKY, *BLUE, user("Why?"), assistant("It scatters light.")]
    assert to_pair({"chosen": longer, "rejected": SKY + BLUE}) == PreferencePair(SKY, longer[1:], BLUE)
    assert to_pair({"chosen": longer, "rejected": longer}) == PreferencePair(longer[:3], longer[3:], longer[3:])


def test_the_words_that_both_texts_begin_with_are_a_prompt_and_said_to_be_so():
    pair = to_pair(TEXTS | {"source": "a book"})
    assert (pair, pair.is_prompt_shared_words) == (PreferencePair("It is", " blue.", " green."), True)
    assert format_of(TEXTS) == "standard, implicit prompt"
    assert not to_pair({"chosen": "Which?\nThis.", "rejected": "Which?\nThat."}).is_prompt_shared_words


def test_several_turns_and_a_system_message_belong_to_the_prompt():
    shared = [system("Be brief."), user("Hi"), assistant("Hello."), *SKY]
    assert to_pair({"chosen": shared + BLUE, "rejected": shared + GREEN}) == PreferencePair(shared, BLUE, GREEN)


def test_the_answers_may_repeat_the_prompt_without_its_system_message():
    prompt = [system("Be brief."), *SKY]
    row = {"prompt": prompt, "chosen": SKY + BLUE, "rejected": SKY + GREEN}
    assert to_pair(row) == PreferencePair(prompt, BLUE, GREEN)


def test_a_text_prompt_comes_after_the_system_message_of_the_answers():
    be_brief = [system("Be brief.")]
    row = {"prompt": "What color is the sky?", "chosen": be_brief + BLUE, "rejected": be_brief + GREEN}
    assert to_pair(row) == PreferencePair(be_brief + SKY, BLUE, GREEN)


NAMES = ["conversational", "ShareGPT", "messages", "question", "Alpaca", "input", "HH dialogue, implicit prompt"]


@pytest.mark.parametrize("row", [*map(SAME_PAIR.get, NAMES), {"prompt": "What color is the sky?", **TEXTS}])
def test_a_system_column_goes_in_front(row):
    pair = to_pair(row | {"system": "Be brief."})
    assert pair == PreferencePair([system("Be brief."), *SKY], BLUE, GREEN)


def test_a_system_message_of_the_prompt_outranks_the_column():
    row = {"prompt": [system("Rhyme."), *SKY], "chosen": BLUE, "rejected": GREEN, "system": "Be brief."}
    assert to_pair(row).prompt == [system("Rhyme."), *SKY]


def test_alpaca_joins_instruction_and_input_after_the_earlier_turns():
    pair = to_pair({"instruction": "Translate.", "input": "Himmel", "history": [["Hi", "Hello."]], **TEXTS})
    assert pair.prompt == [user("Hi"), assistant("Hello."), user("Translate.\nHimmel")]


@pytest.mark.parametrize("tools", [[TOOL], '[{"type": "function", "function": {"name": "look_up"}}]'])
def test_tools_and_template_variables_are_handed_on(tools):
    pair = to_pair(SAME_PAIR["conversational"] | {"tools": tools, "chat_template_kwargs": {"enable_thinking": False}})
    assert pair.tools == [TOOL]
    assert pair.template_kwargs == {"enable_thinking": False}


@pytest.mark.parametrize("nothing", [None, "", []])
def test_absent_tools_and_template_variables_are_none(nothing):
    row = SAME_PAIR["conversational"] | {"tools": nothing, "chat_template_kwargs": None, "system": None}
    assert to_pair(row) == SKY_PAIR


def test_tool_calls_are_kept_and_need_no_content():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look_up", "arguments": {}}}]}
    talk = call | {"content": "Let me see."}
    pair = to_pair({"prompt": [*SKY, call, talk], "chosen": BLUE, "rejected": GREEN})
    assert pair.prompt[1:] == [call | {"content": ""}, talk]


def test_nulls_that_arrow_fills_in_are_left_out():
    rows = [
        {"chosen": SKY + BLUE, "rejected": SKY + GREEN, "tools": None},
        {"chosen": [*SKY, {**BLUE[0], "name": "Sky"}], "rejected": SKY + GREEN, "tools": [TOOL | {"strict": True}]},
        {"chosen": SKY + BLUE, "rejected": SKY + GREEN, "tools": [TOOL]},
    ]
    first, second, third = map(to_pair, datasets.Dataset.from_list(rows))
    assert first == SKY_PAIR
    assert second.chosen == [{**BLUE[0], "name": "Sky"}]
    assert third.tools == [TOOL]


def test_empty_and_identical_answers_can_be_said():
    empty = [assistant("")]
    assert to_pair({"prompt": SKY, "chosen": [], "rejected": ""}) == PreferencePair(SKY, empty, empty)
    assert to_pair({"prompt": "Hi", "chosen": "", "rejected": ""}) == PreferencePair("Hi", "", "")
    assert to_pair({"prompt": SKY, "chosen": BLUE, "rejected": BLUE}) == PreferencePair(SKY, BLUE, BLUE)


@pytest.mark.parametrize("key", ["overall_score", "fine-grained_overall_score", "score", "rating"])
def test_the_best_completion_stands_against_the_worst(key):
    ratings = [("a", "3"), ("b", 5), ("c", 4.5), ("d", "N/A"), ("e", 3.0), ("f", 5), ("g", 10**400)]
    pair = to_pair({"prompt": "Hi", "completions": [{"completion": text, key: score} for text, score in ratings]})
    assert pair == PreferencePair([user("Hi")], [assistant("b")], [assistant("a")])


def test_the_first_score_that_is_there_decides():
    completions = [
        {"response": "a", "overall_score": None, "score": 1, "rating": 2},
        {"response": "b", "overall_score": 9, "score": 3, "rating": 1},
    ]
    assert to_pair({"instruction": "Hi", "completions": completions}).chosen == [assistant("b")]


def completions(*scores):
    return {"instruction": "Hi", "completions": [{"response": "a", "score": score} for score in scores]}


def chosen(value):
    return {"prompt": SKY, "chosen": value, "rejected": GREEN}


FAULTS = [
    ("missing column", "found the columns prompt, chosen; rejected is missing", {"prompt": "a", "chosen": "b"}),
    ("missing column", "found the columns none; expected prompt, chosen and rejected (instead of prompt also ", {}),
    ("missing column", "found the columns prompt, answer; chosen and rejected are missing (standard or conversational",
     {"prompt": "a", "answer": "b"}),
    ("null value", "chosen is null", {"prompt": "a", "chosen": None, "rejected": "c"}),
    ("null value", "prompt is null", {"prompt": None, "chosen": BLUE, "rejected": GREEN}),
    ("null value", "chosen[0].content is null", chosen([{"role": "assistant", "content": None}])),
    ("null value", "instruction is null", {"instruction": None, **TEXTS}),
    ("null value", "completions is null", {"instruction": "Hi", "completions": None}),
    ("response is not text", "chosen is a number", {"prompt": "a", "chosen": 7, "rejected": "c"}),
    ("response is not text", "rejected is true or false", {"question": "a", "chosen": "b", "rejected": True}),
    ("response is not text", "completions[1].response is a list", {
        "instruction": "Hi",
        "completions": [{"response": "a", "score": 1}, {"response": ["b"], "score": 2}],
    }),
    ("prompt is not text", "prompt is a number", {"prompt": 3, "chosen": BLUE, "rejected": GREEN}),
    ("prompt is not text", "question is a list", {"question": ["a"], **TEXTS}),
    ("unknown role", "chosen[0] has the role 'assistent'; expected one of system, developer, user, assistant, tool,"
     " function; did you mean 'assistant'?", chosen([{"role": "assistent", "content": "a"}])),
    ("unknown role", "did you mean 'user'?", {"chosen": [{"role": "human", "content": "a"}], "rejected": SKY + GREEN}),
    ("unknown role", "has the role ['a']", chosen([{"from": ["a"], "value": "a"}])),
    ("malformed history", "history holds a number", {"instruction": "Hi", "history": 7, **TEXTS}),
    ("unknown role", "has the role ['a']", chosen([{"role": ["a"], "content": "a"}])),
    ("last turn is not the assistant's", "chosen ends with the turn of 'user'", chosen([*BLUE, user("Why?")])),
    ("last turn is not the assistant's", "rejected ends with", {"chosen": SKY + BLUE, "rejected": SKY}),
    ("last turn is not the assistant's", "chosen ends with", {
        "chosen": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Bye",
        "rejected": "\n\nHuman: Hi\n\nAssistant: Hm.",
    }),
    ("malformed message", "chosen[0] is text; expected an object with role and content", chosen(["a"])),
    ("malformed message", "chosen[0] has the keys speaker, text", chosen([{"speaker": "a", "text": "b"}])),
    ("malformed message", "chosen[0].content is a number", chosen([{"role": "assistant", "content": 1}])),
    ("image, sound or video", "chosen[0].content[0] is of the type 'image'; expected text alone",
     chosen([{"role": "assistant", "content": [{"type": "image", "url": "a.png"}]}])),
    ("image, sound or video", "prompt[0].content[0] is of the type 'image'; expected text alone",
     chosen("a") | {"prompt": [{"role": "user", "content": [{"image": "a.png"}, {"text": "Why?"}]}]}),
    ("tie", "all 3 scored answers have the score 4", completions(4, 4.0, "4")),
    ("no judgement", "holds 2, fewer than two of them with a score", completions(4, "N/A")),
    ("no judgement", "fewer than two of them", completions()),
    ("no preference", "output is text", {"instruction": "Hi", "output": "Hello."}),
    ("no preference", "output is a list of 1", {"instruction": "Hi", "output": ["Hello."]}),
    ("malformed completions", "completions is a list", {"instruction": "Hi", "completions": ["a", "b"]}),
    ("malformed history", "history holds text", {"instruction": "Hi", "history": ["Hello"], **TEXTS}),
    ("no prompt", "give it in a column prompt (found the columns chosen, rejected, source)",
     {"chosen": "Blue.", "rejected": "Green.", "source": "a book"}),
    ("no prompt", "do not begin with the same user turn", {"chosen": BLUE, "rejected": GREEN}),
    ("no prompt", "do not begin with the same user turn",
     {"chosen": [system("a"), *SKY, *BLUE], "rejected": [system("a"), user("Hi"), *GREEN]}),
    ("malformed tools", "tools is no JSON at character 1", SAME_PAIR["conversational"] | {"tools": "[look_up]"}),
    ("malformed tools", "tools is an object", SAME_PAIR["conversational"] | {"tools": TOOL}),
    ("malformed chat_template_kwargs", "it is a list", SAME_PAIR["conversational"] | {"chat_template_kwargs": [1]}),
    ("malformed row", "found a list", [1, 2]),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "detail", "row"), FAULTS, ids=[text[:40] for _, text, _ in FAULTS])
def test_a_fault_is_named_and_can_be_counted(reason, detail, row):
    with pytest.raises(RowError) as caught:
        to_pair(row)
    assert caught.value.reason == reason
    assert detail in caught.value.detail
    assert "\n" not in str(caught.value)


def test_an_unknown_format_names_the_columns_and_the_formats():
    message = r"found the columns text, label; expected prompt, .*also conversations, messages.*; or .*completions"
    with pytest.raises(DataError, match=message):
        format_of({"text": "a", "label": 1})
