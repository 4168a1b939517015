"""Messages, tools and arguments that are written as text are read or refused, and other JSON stays an answer."""

import json

import pytest

from oddsmith.data.formats import PreferencePair, format_of, to_pair
from oddsmith.data.formats.written import MAX_PYTHON_CHARACTERS, read_text
from oddsmith.errors import RowError
from tests.pairs import assistant, user

SKY, BLUE, GREEN = [user("It's the sky's \"color\"?\n\\d")], [assistant("blue } {")], [assistant("green")]
PAIR = PreferencePair(SKY, BLUE, GREEN)
SHAREGPT = {"user": "human", "assistant": "gpt"}


def numpy_text(messages):
    return "[" + "\n ".join(map(repr, messages)) + "]"


WRITINGS = {
    "JSON": json.dumps,
    "JSON, twice": lambda messages: json.dumps(json.dumps(messages)),
    "JSON with blanks": lambda messages: f"\n {json.dumps(messages, indent=2)}\n",
    "JSON, content first": lambda messages: json.dumps(
        [{"content": each["content"], "role": each["role"]} for each in messages]
    ),
    "JSON, from and value": lambda messages: json.dumps(
        [{"from": SHAREGPT[each["role"]], "value": each["content"]} for each in messages]
    ),
    "JSON of one message": lambda messages: json.dumps(messages[0]),
    "Python": str,
    "a tuple of Python": lambda messages: str(tuple(messages)),
    "Python, as JSON": lambda messages: json.dumps(str(messages)),
    "numpy": numpy_text,
    "an array of numpy": lambda messages: f"array([{messages[0]!r}], dtype=object)",
    "a list of JSON texts": lambda messages: [json.dumps(each) for each in messages],
    "messages": list,
}


@pytest.mark.parametrize("write", WRITINGS.values(), ids=WRITINGS)
@pytest.mark.parametrize("column", ["prompt", "messages", "conversations", "question"])
def test_every_way_of_writing_messages_is_read(write, column):
    row = {column: write(SKY), "chosen": write(BLUE), "rejected": write(GREEN)}
    assert to_pair(row) == PAIR
    assert "standard" not in format_of(row) or column != "prompt"


def test_numpy_writes_several_messages_without_commas():
    np = pytest.importorskip("numpy")
    many = [*SKY, *BLUE, *SKY]
    text = str(np.array(many, dtype=object))
    assert text == numpy_text(many) or "} {" in text
    assert to_pair({"prompt": text, "chosen": str(BLUE), "rejected": str(GREEN)}).prompt == many
    nested = [assistant("", tool_calls=np.array([{"function": {"name": "look", "arguments": {"at": float("nan")}}}]))]
    call = to_pair({"prompt": SKY, "chosen": str(nested), "rejected": str(GREEN)}).chosen[0]["tool_calls"][0]
    assert call == {"function": {"name": "look", "arguments": {}}}


def test_whole_conversations_are_read_beside_a_text_prompt_or_none():
    whole = {"chosen": str(SKY + BLUE), "rejected": str(SKY + GREEN)}
    assert to_pair(whole) == PAIR
    assert format_of(whole) == "conversational, implicit prompt"
    assert to_pair({"prompt": SKY[0]["content"], **whole}) == PAIR
    assert to_pair({"prompt": "[]", **whole}) == PAIR
    assert to_pair({"instruction": SKY[0]["content"], "output": [str(BLUE), str(GREEN)]}) == PAIR


@pytest.mark.parametrize(
    "answer",
    [
        '[{"role": "manager", "name": "Bob"}]', '{"role": "admin", "content": "all"}', '{"from": "USD", "value": 3}',
        '[{"role": "user", "id": 3}]', '["role", "content"]', "[role] content: {", '{"content": "a", "kind": "role"}',
        "{'role': 'user'", '"the role of content"', "[]", "{}", "'role' and 'content'", '{"role": "user", "content": ',
        'Like [{"role": "user", "content": "Hi"}]', "```json\n[{\"role\": \"user\", \"content\": \"Hi\"}]\n```",
    ],
)  # fmt: skip
def test_other_json_is_an_answer_like_another(answer):
    row = {"prompt": "Say it in JSON.", "chosen": answer, "rejected": "No."}
    if answer.endswith(": "):
        with pytest.raises(RowError, match="chosen begins like messages written as text, but is neither JSON"):
            to_pair(row)
    else:
        assert to_pair(row) == PreferencePair(*row.values())


def test_messages_of_unknown_roles_are_refused_where_every_column_holds_such():
    strange = [{"role": "customer", "content": "Hi"}]
    row = {"prompt": str(strange), "chosen": json.dumps(BLUE), "rejected": str(GREEN)}
    with pytest.raises(RowError, match=r"unknown role: chosen\[0\] has the role 'customer'"):
        to_pair(row | {"chosen": str(strange), "rejected": str(strange)})
    with pytest.raises(RowError, match=r"unknown role: chosen\[0\] has the role 'customer'"):
        to_pair({"prompt": str(SKY), "chosen": str(strange), "rejected": str(strange)})
    with pytest.raises(RowError, match=r"unknown role: chosen\[0\] has the role 'Assistant'.*did you mean 'assistant'"):
        to_pair({**row, "prompt": str(SKY), "chosen": str([{**BLUE[0], "role": "Assistant"}])})


def test_lists_of_alpaca_may_be_written_as_text():
    row = {"instruction": "Sky?", "history": "[['Hi', 'Hello.']]", "output": "['blue', 'green']"}
    expected = PreferencePair(
        [user("Hi"), assistant("Hello."), user("Sky?")], [assistant("blue")], [assistant("green")]
    )
    assert to_pair(row) == expected


@pytest.mark.parametrize("other", ["I cannot.", "[{'content': 'a message of 40,000 letters is cut he"])
@pytest.mark.parametrize("sides", [("chosen", "rejected"), ("rejected", "chosen")], ids=["chosen", "rejected"])
def test_one_side_alone_is_not_read_as_messages(sides, other):
    row = {"prompt": "Show me a chat.", sides[0]: json.dumps(BLUE), sides[1]: other}
    with pytest.raises(RowError, match=f"malformed message: {sides[0]} is a message or a list of messages written as"):
        to_pair(row)
    meant = row | {sides[0]: assistant(json.dumps(BLUE)), sides[1]: "I cannot."}  # the way out that the message names
    assert getattr(to_pair(meant), sides[0]) == [assistant(json.dumps(BLUE))]


@pytest.mark.parametrize(
    "text",
    [
        "[" * 5000, "{'a': " * 300 + "1" + "}" * 300, "-" * 100_000 + "1", "__import__('os')", "{1: 2}", "{'a', 'b'}",
        "b'a'", "1 + 2j", "[{'a': 1}" + " {'a': 1}" * 3 + "", "'" + "a" * MAX_PYTHON_CHARACTERS + "'", "9" * 5000,
        "(" * 50 + "'a'" + ",)" * 200, "\x00", "[...]",
    ],
    ids=range(14),
)  # fmt: skip
def test_only_plain_values_are_read_from_python(text):
    with pytest.raises(ValueError, match="."):
        read_text(text)


def test_python_is_read_without_warnings(recwarn):
    assert read_text(r"{'a': '\d', 'b': (1, None, True, nan), 'c': 'it is nan'}") == {
        "a": "\\d", "b": [1, None, True, None], "c": "it is nan",
    }  # fmt: skip
    assert not recwarn


CALL = {"type": "function", "function": {"name": "run", "arguments": {"code": "sorted(x)", "n": None}}}
FUNCTION = CALL["function"]
ARGUMENTS = json.dumps(FUNCTION["arguments"])


@pytest.mark.parametrize(
    "message",
    [
        {"tool_calls": [{**CALL, "function": {"name": "run", "arguments": ARGUMENTS}}]},
        {"tool_calls": [{**CALL, "function": {"name": "run", "arguments": json.dumps(ARGUMENTS)}}]},
        {"tool_calls": [{**CALL, "function": {"name": "run", "arguments": str(FUNCTION["arguments"])}}]},
        {"tool_calls": json.dumps([CALL])},
        {"tool_calls": str([CALL])},
        {"tool_calls": [json.dumps(CALL)]},
        {"tool_calls": [{**CALL, "function": json.dumps(FUNCTION)}]},
        {"function_call": {"name": "run", "arguments": ARGUMENTS}},
        {"role": "function_call", "content": json.dumps(FUNCTION)},
        {"role": None, "from": "function_call", "value": json.dumps(FUNCTION)},
        {"role": None, "from": "tool_call", "value": json.dumps([FUNCTION])},
        {"role": None, "from": "function_call", "value": str(FUNCTION)},
    ],
)
def test_every_way_of_writing_a_call_is_read(message):
    given = {"role": "assistant", "content": None, **message}
    assert to_pair({"prompt": SKY, "chosen": [given], "rejected": GREEN}).chosen == [assistant("", tool_calls=[CALL])]


def test_a_call_keeps_its_id_and_the_thought_before_it():
    given = {"from": "function_call", "value": '<think>\nLet me see.\n</think>\n{"name": "run", "arguments": {}}'}
    pair = to_pair({"conversations": [{"from": "human", "value": "Hi"}], "chosen": given, "rejected": GREEN})
    calls = [{"type": "function", "function": {"name": "run", "arguments": {}}}]
    assert pair.chosen == [assistant("<think>\nLet me see.\n</think>", tool_calls=calls)]
    flat = [{"id": "1", "name": "run", "arguments": ""}, {"name": "run", "parameters": "{}"}]  # for other templates
    assert to_pair({"prompt": SKY, "chosen": [assistant("", tool_calls=flat)], "rejected": GREEN}).chosen == [
        assistant("", tool_calls=[{"id": "1", "name": "run", "arguments": {}}, flat[1]])
    ]


@pytest.mark.parametrize(
    ("calls", "detail"),
    [
        ("run(x)", "chosen[0].tool_calls is no JSON"),
        (
            [{"function": {"name": "run", "arguments": "x = 1"}}],
            "chosen[0].tool_calls[0].function.arguments is no JSON",
        ),
        ([{"function": {"name": "run", "arguments": "[1]"}}], "function.arguments is a list; expected an object"),
        ([{"function": 3}], "chosen[0].tool_calls[0].function is a number"),
        ([{"name": "run", "arguments": "["}], "chosen[0].tool_calls[0].arguments is no JSON"),
        (7, "chosen[0].tool_calls is a number"),
    ],
)
def test_a_call_that_cannot_be_read_is_refused(calls, detail):
    with pytest.raises(RowError) as caught:
        to_pair({"prompt": SKY, "chosen": [assistant("", tool_calls=calls)], "rejected": GREEN})
    assert caught.value.reason == "malformed tool call"
    assert detail in caught.value.detail


TOOL = {"type": "function", "function": {"name": "run", "parameters": {"type": "object", "properties": {}}}}
SCHEMA = TOOL["function"]


@pytest.mark.parametrize(
    "tools",
    [
        json.dumps([TOOL]), json.dumps(json.dumps([TOOL])), str([TOOL]), [json.dumps(TOOL)], [str(TOOL)],
        [{**TOOL, "function": json.dumps(SCHEMA)}],
        [{**TOOL, "function": {**SCHEMA, "parameters": json.dumps(SCHEMA["parameters"])}}],
    ],
    ids=["JSON", "JSON, twice", "Python", "list of JSON", "list of Python", "function", "parameters"],
)  # fmt: skip
def test_every_way_of_writing_tools_is_read(tools):
    assert to_pair({"prompt": SKY, "chosen": BLUE, "rejected": GREEN, "tools": tools}).tools == [TOOL]


def test_a_tool_that_cannot_be_read_is_refused():
    tools = [{**TOOL, "function": {**SCHEMA, "parameters": "{'a': "}}]
    with pytest.raises(RowError, match=r"malformed tools: tools\[0\].function.parameters is no JSON"):
        to_pair({"prompt": SKY, "chosen": BLUE, "rejected": GREEN, "tools": tools})
