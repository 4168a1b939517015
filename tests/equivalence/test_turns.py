"""The assistant's own turns under the chat templates of real models, as TRL has collected them."""

import re
from itertools import groupby
from pathlib import Path

import pytest
import trl

from oddsmith.data.formats import PreferencePair
from oddsmith.data.tokens.pair_tokenizer import PairTokenizer
from oddsmith.data.tokens.tokenized import TokenizedPair
from oddsmith.errors import ModelError, RowError
from tests.pairs import assistant, user
from tests.tiny import tiny_tokenizer

TEMPLATES = {path.stem: path for path in sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))}
SPECIAL = re.compile(
    r"<[|｜][^|<>｜\s']+[|｜]>|<[|][a-z_]+>|<[a-z_]+[|]>|<(?:start|end)_of_turn>|</?think>|</?tool_call>"
)
FAST = ("gptoss", "qwen3", "llama3_1", "glm4moe")
# Those that mark what we learn, apart from blanks: no header, but the token that ends the turn.
MARKED = ("llama3_training", "qwen2_5_training", "qwen3_training")

FUNCTION = {"name": "get_rain", "arguments": {"city": "Oslo", "days": 3}}
CALL = [{"id": "abcdefghi", "type": "function", "function": FUNCTION}]
RESULT = {"role": "tool", "content": "wet", "tool_call_id": "abcdefghi", "name": "get_rain"}
TOOLS = [{"type": "function", "function": {"name": "get_rain", "description": "Rain.", "parameters": {}}}]
NO = [assistant("No.")]
ROWS = {
    "chat": ([user("Hi")], [assistant("Hello."), user("And?"), assistant("Bye.")]),
    "agent": ([user("Rain?")], [assistant("", tool_calls=CALL), RESULT, assistant("Yes.")]),
    "thoughts": (
        [user("Rain?")],
        [
            *(assistant("", tool_calls=CALL, reasoning_content="Hello."), RESULT),
            *(assistant("Yes.", reasoning_content="So."), user("And?"), assistant("Bye.")),
        ],
    ),
    "two results": ([user("Rain?")], [assistant("Hello.", tool_calls=CALL * 2), RESULT, RESULT, assistant("Yes.")]),
}
OWN, OTHERS = ("Hello", "Bye", "Yes", "Oslo"), ("wet", "And?")


def tokenizer_of(name: str):
    template = TEMPLATES[name].read_text(encoding="utf-8")
    special = tuple(sorted(set(SPECIAL.findall(template))))
    return tiny_tokenizer(template, bos="<s>", eos="</s>", extra_special=special)


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in TEMPLATES])
def test_what_others_write_is_no_target_and_all_of_the_assistants_is(name):
    tokenizer = tokenizer_of(name)
    for prompt, chosen in ROWS.values():
        row = PreferencePair(prompt, chosen, NO, tools=TOOLS)
        try:
            (tokens,) = PairTokenizer(tokenizer, max_length=None).tokenize([row])
        except (RowError, ModelError):  # it refuses tools, writes turns in another order, or needs contents in parts
            continue
        if not isinstance(tokens, TokenizedPair):  # it leaves calls out
            continue
        segments = [(tokenizer.decode(ids), is_learned) for ids, is_learned in tokens.side("chosen").segments()]
        learned = [text for text, is_learned in segments if is_learned]
        rest = "".join(text for text, is_learned in segments if not is_learned)
        assert not any(word in text for text in learned for word in OTHERS), segments
        assert not any(word in rest for word in OWN), segments
        assert len(learned) == sum(message["role"] == "assistant" for message in chosen)


@pytest.mark.parametrize("name", MARKED)
def test_generation_marks_of_a_template_say_the_same(name):
    tokenizer = tokenizer_of(name)
    for kind in ("chat", "thoughts"):
        prompt, chosen = ROWS[kind]
        (tokens,) = PairTokenizer(tokenizer, max_length=None).tokenize([PreferencePair(prompt, chosen, NO)])
        if not isinstance(tokens, TokenizedPair):
            continue
        found = tokenizer.apply_chat_template([*prompt, *chosen], return_assistant_tokens_mask=True, return_dict=True)
        pieces = groupby(zip(found["input_ids"], found["assistant_masks"], strict=True), key=lambda pair: pair[1])
        own = [tokenizer.decode([token for token, _ in piece]).strip() for is_own, piece in pieces if is_own]
        learned = [ids for ids, is_learned in tokens.side("chosen").segments() if is_learned]
        assert [tokenizer.decode(ids).strip() for ids in learned] == own
