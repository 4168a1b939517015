"""Plain text and the chat template: what is done with it is told, and never two things in one dataset unasked."""

import datasets
import pytest

from oddsmith.data.formats import to_pair
from oddsmith.data.prepare import prepare
from oddsmith.data.tokens.pair_tokenizer import PairTokenizer
from oddsmith.data.tokens.tokenized import Form
from oddsmith.errors import DataError, ModelError
from tests.pairs import assistant, conversation, targets, text_pair, tokenize, user
from tests.templates import CHAT_FORMATS, SMOLLM2
from tests.tiny import tiny_tokenizer

TEXT = {"prompt": "Why? ", "chosen": " Because.", "rejected": "No."}
CHAT = {
    "prompt": [{"role": "user", "content": "Why?"}],
    "chosen": [{"role": "assistant", "content": "Because."}],
    "rejected": [{"role": "assistant", "content": "No."}],
}
HH = {"chosen": "\n\nHuman: Why?\n\nAssistant: Because.", "rejected": "\n\nHuman: Why?\n\nAssistant: No."}
RENDERED = {**TEXT, "prompt": "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"}

of_chat = pytest.mark.parametrize("chat", CHAT_FORMATS, ids=lambda chat: chat.name)


def stream_of(rows: list[dict]) -> datasets.IterableDataset:
    return datasets.IterableDataset.from_generator(lambda: iter(rows))


def report_of(rows, on_text: bool | None = None, template: str | None = SMOLLM2.template):
    return prepare(rows, PairTokenizer(tiny_tokenizer(template), max_length=None, chat_template_on_text=on_text)).report


@of_chat
def test_text_in_the_template_is_the_conversation_of_its_stripped_parts(chat):
    tokenizer = chat.tokenizer()
    pair = text_pair("Why? ", " Because.\n", "No.")
    tokens = tokenize(tokenizer, pair, chat_template_on_text=True)
    expected = tokenize(tokenizer, conversation([user("Why?")], "Because.", "No."))
    assert tokens.form is Form.TEMPLATED_TEXT
    assert (tokens.chosen_ids, tokens.rejected_ids) == (expected.chosen_ids, expected.rejected_ids)
    assert (tokens.chosen_prompt_tokens, tokens.chosen_end) == (expected.chosen_prompt_tokens, expected.chosen_end)


@of_chat
@pytest.mark.parametrize("on_text", (True, False, None))
def test_text_that_was_rendered_before_stays_as_it_is(chat, on_text):
    tokenizer = chat.tokenizer()
    prompt = tokenizer.apply_chat_template([user("Why?")], add_generation_prompt=True, tokenize=False)
    tokens = tokenize(tokenizer, text_pair(prompt, "Because.", "No."), chat_template_on_text=on_text)
    assert tokens.form is Form.RENDERED_TEXT
    assert tokenizer.decode(tokens.chosen_ids).count("Why?") == 1
    assert targets(tokenizer, tokens) == "Because." + chat.eos


@of_chat
@pytest.mark.parametrize("on_text", (True, False, None))
def test_a_raw_prompt_before_answers_that_were_rendered_with_it_is_told(chat, on_text):
    tokenizer = chat.tokenizer()

    def whole(answer):
        return tokenizer.apply_chat_template([user("Why?"), assistant(answer)], tokenize=False)

    pair = text_pair("Why?", whole("Because."), whole("No."))
    tokens = tokenize(tokenizer, pair, chat_template_on_text=on_text)
    assert tokens.form is Form.RENDERED_ANSWERS
    assert tokenizer.decode(tokens.chosen_ids).count("Why?") == 2


def test_that_a_question_stands_twice_is_a_warning_of_the_report():
    turn = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    row = {"prompt": "Why?", "chosen": f"{turn}Because.<|im_end|>\n", "rejected": f"{turn}No.<|im_end|>\n"}
    report = report_of([row, CHAT])
    (warning,) = report.warnings()
    assert warning.startswith("1 row: a raw prompt before answers that were rendered with their question")
    split = {"prompt": "<|im_start|>user\nWhy?<|im_end|>\n"} | {
        side: f"<|im_start|>assistant\n{text}<|im_end|>\n" for side, text in (("chosen", "A"), ("rejected", "B"))
    }
    assert report_of([split, split]).forms == {Form.RENDERED_TEXT: 2}


@pytest.mark.parametrize("template", (None, "always the same"), ids=("no template", "one without turns"))
def test_text_needs_no_template(template):
    assert tokenize(tiny_tokenizer(template), text_pair("Hi ", "Yes", "No")).form is (Form.TEXT if template else None)


@pytest.mark.parametrize("row", (TEXT, HH), ids=("text", "HH transcript"))
def test_asking_for_a_template_that_is_not_there_is_an_error(row):
    with pytest.raises(ModelError, match="chat_template_on_text is on, but tokenizer .* has no chat template"):
        report_of([row], True, template=None)


@pytest.mark.parametrize("on_text", (None, True))
def test_a_transcript_is_the_conversation_of_its_turns_under_a_template(on_text):
    tokenizer = SMOLLM2.tokenizer()
    tokens, expected = (tokenize(tokenizer, to_pair(row), chat_template_on_text=on_text) for row in (HH, CHAT))
    assert tokens.form is Form.TRANSCRIPT
    assert (tokens.chosen_ids, tokens.rejected_ids) == (expected.chosen_ids, expected.rejected_ids)


def test_a_transcript_with_more_than_its_text_needs_a_template():
    with pytest.raises(ModelError, match="has no chat template, but the rows are conversations"):
        report_of([HH | {"system": "Be kind."}] * 2, template=None)


@pytest.mark.parametrize(
    ("rows", "on_text", "line"),
    (
        ([TEXT] * 2, None, "plain text, without the chat template; with it: chat_template_on_text: true"),
        ([TEXT] * 2, True, "plain text, put into the chat template; without it: chat_template_on_text: false"),
        ([RENDERED] * 2, None, "text that was put into the chat template before, and stays as it is"),
        ([TEXT, CHAT, TEXT], False, "2 of them plain text, without the chat template; with it: "),
        ([TEXT, CHAT], True, "1 of them plain text, put into the chat template; without it: "),
        ([HH] * 2, None, "Anthropic HH text, rendered anew by the chat template; as it is: chat_template_on_text: "),
        ([HH] * 2, False, "plain text, without the chat template; with it: chat_template_on_text: true"),
        ([RENDERED, TEXT, TEXT], None, "2 of them plain text, without the chat template; "),
    ),
)  # fmt: skip
def test_one_line_says_what_was_done_and_how_to_do_the_other(rows, on_text, line):
    assert any(found.startswith(f"  {line}") for found in report_of(rows, on_text).lines())


def test_conversations_and_base_models_need_no_line():
    for report in (report_of([CHAT] * 2), report_of([TEXT] * 2, template=None)):
        assert "template" not in " ".join(report.lines())


def test_a_stream_says_it_before_a_row_is_counted():
    lines = report_of(stream_of([TEXT] * 2)).lines()
    assert "  plain text, without the chat template; with it: chat_template_on_text: true" in lines


@pytest.mark.parametrize(
    "rows",
    ([TEXT, CHAT, TEXT], [CHAT, TEXT, TEXT], [TEXT, HH, TEXT]),
    ids=("text first", "conversation first", "HH transcript"),
)
@pytest.mark.parametrize("make", (list, stream_of))
def test_both_in_one_dataset_need_a_decision(rows, make):
    with pytest.raises(DataError, match="found 2 rows of plain text and 1 of messages; set chat_template_on_text to"):
        list(prepare(make(rows), PairTokenizer(SMOLLM2.tokenizer(), max_length=None)).dataset)
    for on_text in (True, False):
        tokenizer = PairTokenizer(SMOLLM2.tokenizer(), max_length=None, chat_template_on_text=on_text)
        assert len(list(prepare(make(rows), tokenizer).dataset)) == 3


def test_rendered_text_may_stand_beside_conversations():
    assert report_of([RENDERED, CHAT]).forms == {Form.RENDERED_TEXT: 1, Form.CONVERSATION: 1}
