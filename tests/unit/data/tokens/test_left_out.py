"""What a chat template leaves out of a row is found: an answer that loses everything is dropped, other losses told."""

from types import SimpleNamespace

import pytest

from oddsmith import ORPOTrainer
from oddsmith.data.formats import PreferencePair
from oddsmith.data.prepare import prepare
from oddsmith.data.tokens.pair_tokenizer import PairTokenizer
from oddsmith.data.tokens.tokenized import Dropped, DropReason, TokenizedPair
from oddsmith.errors import DataError
from tests.pairs import assistant, conversation, targets, tokenize, user
from tests.templates import CHAT_FORMATS, GEMMA, LLAMA3, MISTRAL, QWEN3, SMOLLM2
from tests.tiny import CHATML, tiny_tokenizer

CALL = [{"id": "c1", "type": "function", "function": {"name": "w", "arguments": {"city": "Rome", "days": 3}}}]
TOOL = {"type": "function", "function": {"name": "w", "description": "Weather.", "parameters": {}}}
RAIN = {"role": "tool", "content": "rain"}
ASK = [user("weather in Rome?")]
NO = [assistant("I don't know")]

WITH_CALLS = (
    "{% if tools %}{{ tools | tojson }}\n{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FIRST_CALL = WITH_CALLS.replace("m.tool_calls or []", "(m.tool_calls or [])[:1]")
NAMES_OF_CALLS = WITH_CALLS.replace("c.function | tojson", "c.function.name")
NO_TEXT_BESIDE_CALLS = WITH_CALLS.replace("{{ m.content }}", "{% if not m.tool_calls %}{{ m.content }}{% endif %}")
# As in DeepSeek-R1: what stands before the end of the thoughts is cut off.
NO_THOUGHTS = CHATML.replace("message['content']", "message['content'].split('</think>')[-1]")
NO_SYSTEM = CHATML.replace("messages %}", "messages if message['role'] != 'system' %}")
REORDERED = CHATML.replace("for message in messages", "for message in messages | sort(attribute='role', reverse=True)")


def think(thoughts: str, answer: str) -> list[dict]:
    return [assistant(f"<think>\n{thoughts}\n</think>\n\n{answer}")]


def pair(chosen, rejected=NO, prompt=ASK, **more) -> PreferencePair:
    return PreferencePair(prompt, chosen, rejected, **more)


LOST, LOST_REJECTED, SAME = DropReason.LEFT_OUT_CHOSEN, DropReason.LEFT_OUT_REJECTED, DropReason.IDENTICAL_RENDERED

DROPPED = {
    "a call": (CHATML, pair([assistant("", tool_calls=CALL)]), LOST),
    "a call in the old style": (CHATML, pair([assistant("", function_call={"name": "w", "arguments": "{}"})]), LOST),
    "a call of the rejected answer": (CHATML, pair(NO, [assistant(" ", tool_calls=CALL)]), LOST_REJECTED),
    "a call in the middle": (CHATML, pair([assistant("", tool_calls=CALL), RAIN, assistant("Wet")]), LOST),
    "thoughts alone": (NO_THOUGHTS, pair(think("add", "")), LOST),
    "thoughts as a field": (CHATML, pair([assistant("", reasoning_content="add")]), LOST),
    "thoughts that differ": (NO_THOUGHTS, pair(think("add", "4"), think("guess", "4")), SAME),
    "calls that differ": (
        CHATML,
        pair([assistant("Hm", tool_calls=CALL)], [assistant("Hm", tool_calls=CALL[:0])]),
        SAME,
    ),
    "blanks that differ": (GEMMA.tokenizer(), pair([assistant("Yes")], [assistant("Yes\n")]), SAME),
}

TOLD = {
    "a call beside text": (CHATML, pair([assistant("I look.", tool_calls=CALL)]), {"calls of tools in chosen"}),
    "the second call": (FIRST_CALL, pair([assistant("", tool_calls=CALL * 2)]), {"calls of tools in chosen"}),
    "arguments of a call": (NAMES_OF_CALLS, pair([assistant("", tool_calls=CALL)]), {"calls of tools in chosen"}),
    "text beside a call": (
        NO_TEXT_BESIDE_CALLS, pair([assistant("I look.", tool_calls=CALL)]), {"text of the assistant in chosen"}
    ),
    "tools": (CHATML, pair([assistant("Sun")], tools=[TOOL]), {"tools"}),
    "bare tools": (CHATML, pair([assistant("Sun")], tools=[TOOL["function"]]), {"tools"}),
    "thoughts of both": (
        NO_THOUGHTS, pair(think("add", "4"), think("guess", "5")), {"thoughts in chosen", "thoughts in rejected"}
    ),
    "thoughts as a field": (CHATML, pair([assistant("4", reasoning="add")]), {"thoughts in chosen"}),
    "thoughts of earlier turns": (
        QWEN3.tokenizer(), pair(NO, think("so", "Yes"), [*ASK, *think("hm", "Hi"), user("?")]), {"thoughts in prompt"}
    ),
    "the system message": (
        NO_SYSTEM, pair([assistant("Sun")], prompt=[{"role": "system", "content": "Rome"}, *ASK]),
        {"system messages in prompt"},
    ),
    "a call and its result in the prompt": (
        CHATML.replace("messages %}", "messages if message['role'] != 'tool' %}"),
        pair([assistant("Wet")], prompt=[*ASK, assistant("", tool_calls=CALL), RAIN]),
        {"calls of tools in prompt", "results of tools in prompt"},
    ),
    "a name": (CHATML, pair([assistant("Sun")], prompt=[user("Hi") | {"name": "Ann"}]), {"names in prompt"}),
    "an unknown field": (CHATML, pair([assistant("Sun", images=["a.png"])]), {"'images' in chosen"}),
}  # fmt: skip

WHOLE = {
    "a call": (WITH_CALLS, pair([assistant("", tool_calls=CALL)], tools=[TOOL])),
    "a call with its result": (WITH_CALLS, pair([assistant("", tool_calls=CALL), RAIN, assistant("Wet")])),
    "the id of a result": (WITH_CALLS, pair([assistant("Wet")], prompt=[*ASK, RAIN | {"tool_call_id": "c1"}])),
    "thoughts under two keys": (
        CHATML.replace("message['content']", "message.reasoning_content | default('') ~ message['content']"),
        pair([assistant("4", reasoning="add", reasoning_content="add")]),
    ),
    "trimmed contents": (LLAMA3.tokenizer(), pair([assistant(" a\n\n b \n")], prompt=[user("\n Hi <b> ")])),
    "messages in another order": (
        REORDERED,
        pair([assistant("Sun")], prompt=[*ASK, {"role": "system", "content": "S"}]),
    ),
    "last thoughts": (QWEN3.tokenizer(), pair(think("add", "4"), think("guess", "5"))),
}


def outcome(template, row: PreferencePair) -> TokenizedPair | Dropped:
    return tokenize(tiny_tokenizer(template) if isinstance(template, str) else template, row)


@pytest.mark.parametrize("name", DROPPED)
def test_an_answer_that_loses_everything_or_all_that_differs_is_dropped(name):
    template, row, reason = DROPPED[name]
    assert outcome(template, row) == Dropped(reason)


@pytest.mark.parametrize("name", TOLD)
def test_a_part_that_is_lost_is_told(name):
    template, row, parts = TOLD[name]
    tokens = outcome(template, row)
    assert isinstance(tokens, TokenizedPair)
    assert set(tokens.left_out) == parts


@pytest.mark.parametrize("name", WHOLE)
def test_nothing_is_claimed_of_what_is_rendered(name):
    template, row = WHOLE[name]
    tokens = outcome(template, row)
    assert isinstance(tokens, TokenizedPair)
    assert tokens.left_out == ()


@pytest.mark.parametrize("chat", CHAT_FORMATS, ids=lambda chat: chat.name)
def test_marks_do_not_reach_the_tokens(chat):
    row = pair([assistant("Sun", reasoning="hm")], prompt=[user("Hi") | {"name": "Ann"}])
    tokenizer = chat.tokenizer()
    tokens = tokenize(tokenizer, row)
    assert set(tokens.left_out) == {"names in prompt", "thoughts in chosen"}
    assert targets(tokenizer, tokens) == chat.response("Sun") + (chat.end_of_turn or chat.eos)


def test_a_template_that_refuses_marked_messages_is_judged_by_the_texts():
    template = CHATML.replace(
        "{% for", "{% if 'Oddsmark' in messages | string %}{{ raise_exception('no') }}{% endif %}{% for"
    )
    assert outcome(template, pair([assistant("Sun", reasoning="hm")])).left_out == ("thoughts in chosen",)


class TestReport:
    def test_rows_are_counted(self):
        rows = [
            {"prompt": ASK, "chosen": [assistant("Sun")], "rejected": NO},
            {"prompt": ASK, "chosen": [assistant("Look", tool_calls=CALL)], "rejected": NO, "tools": [TOOL]},
            {"prompt": ASK, "chosen": [assistant("", tool_calls=CALL)], "rejected": NO},
            {"prompt": ASK, "chosen": [assistant("Sun")], "rejected": NO, "tools": [TOOL]},
        ]
        report = prepare(rows, PairTokenizer(SMOLLM2.tokenizer(), max_length=None)).report
        assert report.left_out == {"calls of tools in chosen": [1], "tools": [1, 3]}
        assert report.dropped == {"chosen answer left out by the chat template": [2]}
        assert report.lines()[:4] == [
            "train: 4 rows (conversational), 3 kept, 1 dropped",
            "  dropped 1: chosen answer left out by the chat template (row 2)",
            "  left out of 2 by the chat template: tools (rows 1, 3)",
            "  left out of 1 by the chat template: calls of tools in chosen (row 1)",
        ]

    def test_python_gets_a_warning(self, caplog):
        rows = [{"prompt": ASK, "chosen": [assistant("Sun")], "rejected": NO, "tools": [TOOL]}] * 2
        trainer = SimpleNamespace(
            pair_tokenizer=PairTokenizer(SMOLLM2.tokenizer(), max_length=None),
            args=SimpleNamespace(bad_rows="error", dataset_num_proc=None, process_index=0, remove_unused_columns=True),
            data_reports={},
        )
        ORPOTrainer.prepare_rows(trainer, rows, "train")
        assert caplog.messages == ["train: left out of 2 by the chat template: tools (rows 0, 1)"]

    def test_nothing_left_is_an_error_that_says_why(self):
        rows = [{"prompt": ASK, "chosen": [assistant("", tool_calls=CALL)], "rejected": NO}] * 2
        with pytest.raises(DataError, match="0 usable .*2 chosen answer left out .*: rows 0, 1.*that renders them"):
            prepare(rows, PairTokenizer(MISTRAL.tokenizer(), max_length=None))


def test_plain_conversations_are_rendered_once(monkeypatch):
    tokenizer = SMOLLM2.tokenizer()
    pair_tokenizer = PairTokenizer(tokenizer, max_length=None)
    renderings = []
    apply = type(tokenizer).apply_chat_template
    monkeypatch.setattr(
        type(tokenizer), "apply_chat_template", lambda self, *a, **k: renderings.append(a) or apply(self, *a, **k)
    )
    pair_tokenizer.render(conversation([user("Hi\n"), assistant(" So "), user("<b>?")], "Yes", "No"))
    assert len(renderings) == 3
