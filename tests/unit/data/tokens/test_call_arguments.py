"""Arguments of tool calls are rendered once, by templates that take an object and by those that take text."""

import json

import pytest

from oddsmith.data.formats import to_pair
from oddsmith.errors import RowError
from tests.pairs import assistant, targets, tokenize, user
from tests.tiny import tiny_tokenizer

ARGUMENTS = {"code": 'print("é")', "n": None}
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}"
    "<call>CALL</call>{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% endif %}"
)
AS_JSON = "{{ c.function.arguments | tojson }}"
AS_TEXT = "{{ '' + c.function.arguments }}"
CALLS = {
    "an object": (AS_JSON, json.dumps(ARGUMENTS, ensure_ascii=False)),
    "the whole call": (
        "{{ c.function | tojson }}",
        json.dumps({"name": "run", "arguments": ARGUMENTS}, ensure_ascii=False),
    ),
    "its items": ("{% for key, value in c.function.arguments.items() %}{{ key }}={{ value }};{% endfor %}",
                  'code=print("é");n=None;'),
    "text, joined": (AS_TEXT, json.dumps(ARGUMENTS, ensure_ascii=False)),
    "text, printed": ("{{ c.function.arguments }}", json.dumps(ARGUMENTS, ensure_ascii=False)),
    "either": (
        "{% if c.function.arguments is string %}{{ c.function.arguments }}{% else %}" + AS_JSON + "{% endif %}",
        json.dumps(ARGUMENTS, ensure_ascii=False),
    ),
    "text, only with tools": (
        "{% if not tools %}{{ raise_exception('no tools') }}{% endif %}" + AS_TEXT,
        json.dumps(ARGUMENTS, ensure_ascii=False),
    ),
}  # fmt: skip


@pytest.mark.parametrize("arguments", [ARGUMENTS, json.dumps(ARGUMENTS)], ids=["object", "text"])
@pytest.mark.parametrize(("call", "expected"), CALLS.values(), ids=CALLS)
def test_arguments_are_rendered_as_the_template_expects_them(arguments, call, expected):
    tokenizer = tiny_tokenizer(TEMPLATE.replace("CALL", call))
    calls = [{"type": "function", "function": {"name": "run", "arguments": arguments}}]
    tools = [{"type": "function", "function": {"name": "run"}}]
    row = {"prompt": [user("Hi")], "chosen": [assistant("", tool_calls=calls)], "rejected": "No.", "tools": tools}
    if isinstance(arguments, dict):  # a null among them would be taken for one that Arrow fills in
        expected = expected.replace(', "n": null', "").replace("n=None;", "")
    assert targets(tokenizer, tokenize(tokenizer, to_pair(row))) == f"<call>{expected}</call><|im_end|>"


def test_a_template_that_refuses_every_call_refuses_the_row():
    tokenizer = tiny_tokenizer(TEMPLATE.replace("CALL", "{{ raise_exception('no calls') }}"))
    call = assistant("", tool_calls=[{"function": {"name": "run", "arguments": "{}"}}])
    with pytest.raises(RowError, match="no calls"):
        tokenize(tokenizer, to_pair({"prompt": [user("Hi")], "chosen": [call], "rejected": "No."}))
