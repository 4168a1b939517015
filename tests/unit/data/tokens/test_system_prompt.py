"""A system message for the rows that have none (``system_prompt``)."""

import datasets
import pytest

from oddsmith.data.formats import to_pair
from oddsmith.data.prepare import prepare
from oddsmith.data.token_cache import token_key
from oddsmith.data.tokens.pair_tokenizer import PairTokenizer
from oddsmith.errors import DataError, RowError
from tests.pairs import assistant, tokenize, user
from tests.templates import CHAT_FORMATS, GEMMA, SMOLLM2
from tests.tiny import tiny_tokenizer

SYSTEM = "Answer briefly."
CHAT = {"prompt": [user("Why?")], "chosen": [assistant("Because.")], "rejected": [assistant("No.")]}
TEXT = {"prompt": "Why? ", "chosen": "Because.", "rejected": "No."}
HH = {"chosen": "\n\nHuman: Why?\n\nAssistant: Because.", "rejected": "\n\nHuman: Why?\n\nAssistant: No."}
RENDERED = {**TEXT, "prompt": "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"}


def with_system(row: dict, text: str = SYSTEM, role: str = "system") -> dict:
    return {**row, "prompt": [{"role": role, "content": text}, *row["prompt"]]}


@pytest.mark.parametrize("chat", [chat for chat in CHAT_FORMATS if chat.has_system], ids=lambda chat: chat.name)
@pytest.mark.parametrize("row", [CHAT, HH, TEXT], ids=["messages", "HH transcript", "text in the template"])
def test_the_tokens_are_those_of_a_row_that_has_it(chat, row):
    tokenizer = chat.tokenizer()
    options = {"chat_template_on_text": True} if row is TEXT else {}
    tokens = tokenize(tokenizer, to_pair(row), system_prompt=SYSTEM, **options)
    expected = tokenize(tokenizer, to_pair(with_system(CHAT)))
    assert (tokens.chosen_ids, tokens.rejected_ids) == (expected.chosen_ids, expected.rejected_ids)
    assert (tokens.chosen_prompt_tokens, tokens.chosen_end) == (expected.chosen_prompt_tokens, expected.chosen_end)


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_row_keeps_its_own(role):
    row, tokenizer = with_system(CHAT, "Be kind.", role), SMOLLM2.tokenizer()
    assert tokenize(tokenizer, to_pair(row), system_prompt=SYSTEM) == tokenize(tokenizer, to_pair(row))
    row = {**CHAT, "system": "Be kind."}
    assert "Be kind." in tokenize(tokenizer, to_pair(row), system_prompt=SYSTEM).texts[0]


@pytest.mark.parametrize(
    ("rows", "on_text", "template", "found"),
    [
        ([TEXT] * 2, None, SMOLLM2.template, "2 rows of 2 are text .* or set chat_template_on_text: true"),
        ([TEXT, CHAT, CHAT], False, SMOLLM2.template, "1 row of 3 is text"),
        ([RENDERED, CHAT], None, SMOLLM2.template, "1 row of 2 is text"),
        ([HH] * 2, False, SMOLLM2.template, "2 rows of 2 are text"),
        ([HH] * 2, None, None, "set chat_template: chatml and chat_template_on_text: true"),
    ],
    ids=["text", "text beside messages", "rendered before", "transcripts as they are", "no template"],
)
@pytest.mark.parametrize("make", [list, lambda rows: datasets.IterableDataset.from_generator(lambda: iter(rows))])
def test_text_that_no_template_renders_is_refused(rows, on_text, template, found, make):
    pair_tokenizer = PairTokenizer(
        tiny_tokenizer(template), max_length=None, chat_template_on_text=on_text, system_prompt=SYSTEM
    )
    with pytest.raises(DataError, match=f"train: system_prompt is set, but .*{found}"):
        list(prepare(make(rows), pair_tokenizer).dataset)


def test_a_template_without_the_role_says_so():
    with pytest.raises(RowError, match='the template says "System role not supported".*system_prompt'):
        tokenize(GEMMA.tokenizer(), to_pair(CHAT), system_prompt=SYSTEM)


def test_a_template_that_drops_it_is_told():
    template = (
        "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    report = prepare([CHAT] * 2, PairTokenizer(tiny_tokenizer(template), max_length=None, system_prompt=SYSTEM)).report
    assert "  left out of 2 by the chat template: system messages in prompt (rows 0, 1)" in report.lines()


def test_kept_tokens_are_those_of_the_same_message(monkeypatch):
    monkeypatch.setattr("oddsmith.data.token_cache.MIN_ROWS", 1)
    rows = datasets.Dataset.from_list([CHAT])
    keys = {
        token_key(rows, PairTokenizer(SMOLLM2.tokenizer(), max_length=None, system_prompt=text), "error")
        for text in (None, "", SYSTEM)
    }
    assert len(keys) == 3
    assert None not in keys
