"""The checks that need a tokenizer: what template and truncation make of pairs."""

import pytest

from oddsmith.data.checks import catalogue
from oddsmith.data.checks.catalogue import Check
from oddsmith.data.checks.example import first_example
from oddsmith.data.checks.survey import survey
from oddsmith.data.checks.token_checks import REASONS
from oddsmith.data.prepare import prepare
from oddsmith.data.tokens.pair_tokenizer import PairTokenizer
from oddsmith.data.tokens.tokenized import DropReason
from oddsmith.errors import ModelError
from tests.pairs import assistant, user
from tests.templates import MISTRAL
from tests.tiny import CHATML, ragged_pairs, tiny_tokenizer
from tests.unit.data.checks.test_survey import chat

HI = user("Hi")
PLAIN = {"prompt": "a", "chosen": "b", "rejected": "c"}
HH = {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello.", "rejected": "\n\nHuman: Hi\n\nAssistant: Go away."}
ENDLESS = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
TRIMS = CHATML.replace("message['content']", "message['content'] | trim")

GOOD = [chat(user(f"Question {number}?"), chosen=f"Yes, {number}.", rejected=f"No, {number}.") for number in range(60)]
CALL = [{"name": "f"}]
TOOL_TURNS = {
    "prompt": [HI],
    "chosen": [assistant("Look", tool_calls=CALL), {"role": "tool", "content": "1"}, assistant("One.")],
    "rejected": [assistant("Two.")],
}

OF_TOKENS = [check for check in catalogue.CHECKS if check.needs == catalogue.MODEL]

# check -> (chat template or tokenizer, max_length, max_prompt_length, rows after the good ones, which are at fault)
FAULTY = {
    catalogue.CONTROL_TOKENS: (CHATML, None, None, [chat(user("a <|im_end|> b")), chat(HI)], [0]),
    catalogue.TEMPLATE_REFUSED: (
        MISTRAL.tokenizer(),
        None,
        None,
        [chat(HI, user("?")), chat(assistant("Hi"), HI)],
        [0, 1],
    ),
    catalogue.LOST_IN_TEMPLATE: (
        TRIMS,
        None,
        None,
        [
            chat(HI, chosen="Yes.", rejected="Yes. \n"),
            TOOL_TURNS,
            chat(HI) | {"chosen": [assistant("", tool_calls=CALL)]},
        ],
        [0, 2],
    ),
    catalogue.LEFT_OUT: (CHATML, None, None, [chat(HI), TOOL_TURNS, chat(HI) | {"tools": [{"name": "f"}]}], [1, 2]),
    catalogue.PLAIN_TEXT: (CHATML, None, None, [PLAIN, PLAIN | {"chosen": "d"}], [0, 1]),
    catalogue.TRANSCRIPTS: (CHATML, None, None, [HH, chat(HI)], [0]),
    catalogue.MIXED_FORMS: (CHATML, None, None, [chat(HI), PLAIN], [1]),
    catalogue.IDENTICAL_AFTER_CUT: (CHATML, 100, None, [chat(HI, chosen="x" * 99 + "a", rejected="x" * 99 + "b")], [0]),
    catalogue.PROMPT_TOO_LONG: (CHATML, 100, None, [chat(user("long " * 20)), chat(HI)], [0]),
    catalogue.ANSWER_CUT: (CHATML, 100, None, [chat(user("And?"), rejected="long " * 20)] * 9, range(9)),
    catalogue.PROMPT_CUT: (CHATML, 100, 50, [chat(user("long " * 20))] * 9, range(9)),
    catalogue.TURN_ENDS: (CHATML, None, None, [chat(HI), chat(HI, rejected="One<|im_end|> and two."), TOOL_TURNS], [1]),
    catalogue.NO_TURN_END: (ENDLESS, None, None, [chat(HI)], [0]),
    catalogue.DOUBLE_BOS: (CHATML, None, None, [PLAIN | {"prompt": "<|im_start|><|im_start|>a"}], [0]),
}


def pair_tokenizer(template=CHATML, max_length=None, max_prompt_length=None):
    tokenizer = tiny_tokenizer(template) if isinstance(template, str) else template
    return PairTokenizer(tokenizer, max_length=max_length, max_prompt_length=max_prompt_length)


def finding_on(check: Check, rows, tokens: PairTokenizer):
    found = survey(rows, processes=1, pair_tokenizer=tokens)
    return next(finding for finding in found.findings if finding.check == check.name)


def test_every_check_of_tokens_has_its_case():
    assert set(FAULTY) == set(OF_TOKENS)


@pytest.mark.parametrize("check", OF_TOKENS, ids=lambda check: check.name)
def test_good_pairs_pass(check):
    template, *limits, _, _ = FAULTY[check]
    if check is catalogue.NO_TURN_END:
        template = CHATML
    found = finding_on(check, GOOD, pair_tokenizer(template, *limits))
    assert (found.verdict, found.count) == ("pass", 0)


@pytest.mark.parametrize("check", OF_TOKENS, ids=lambda check: check.name)
def test_a_fault_is_found_at_its_rows(check):
    template, *limits, rows, at = FAULTY[check]
    good = GOOD if check is not catalogue.NO_TURN_END else [PLAIN] * 60
    found = finding_on(check, [*good, *rows], pair_tokenizer(template, *limits))
    assert found.rows == tuple(len(GOOD) + number for number in at)[:8]
    assert found.verdict != "pass"


@pytest.mark.parametrize("on_text", (True, False))
def test_text_beside_conversations_may_be_meant(on_text):
    tokens = PairTokenizer(tiny_tokenizer(), max_length=None, chat_template_on_text=on_text)
    found = {finding.check: finding for finding in survey([*GOOD, PLAIN], processes=1, pair_tokenizer=tokens).findings}
    assert found[catalogue.MIXED_FORMS.name].verdict == "pass"
    assert found[catalogue.PLAIN_TEXT.name].count == (0 if on_text else 1)


def test_a_cut_in_front_of_a_turn_is_no_doubled_bos():
    turns = [user("a" * 30), assistant("b" * 30), user("c" * 30)]
    found = [
        finding_on(catalogue.DOUBLE_BOS, [chat(*turns), chat(HI)], pair_tokenizer(CHATML, 120, limit)).count
        for limit in range(40, 100)
    ]
    assert found == [0] * 60


def test_every_reason_to_drop_a_pair_is_known_to_a_check():
    of_rows = {DropReason.EMPTY_CHOSEN, DropReason.EMPTY_REJECTED, DropReason.CLOSE_SCORES}
    assert set(REASONS) == set(DropReason) - of_rows


def test_kept_and_left_out_are_those_of_the_training():
    rows = [
        *GOOD, *(fault for _, _, _, faulty, _ in FAULTY.values() for fault in faulty), *ragged_pairs(40),
        chat(HI, chosen=" "), chat(HI, rejected="It is blue on a clear day."),
    ]  # fmt: skip
    tokens = pair_tokenizer(max_length=90)
    tokens.chat_template_on_text = False
    found = survey(rows, processes=1, pair_tokenizer=tokens)
    account = prepare(rows, tokens, bad_rows="drop").report
    assert found.kept == account.kept
    dropped = {row for numbers in account.dropped.values() for row in numbers}
    assert dropped <= found.rows_left_out()


def test_lengths_are_those_of_the_targets():
    found = survey(GOOD, processes=1, pair_tokenizer=pair_tokenizer())
    bias = next(finding for finding in found.findings if finding.check == "length bias")
    assert "mean 9 tokens chosen, 8 rejected" in bias.found  # "Yes, 10." and the end of the turn


def test_conversations_without_a_template_are_an_error():
    with pytest.raises(ModelError, match="no chat template"):
        survey(GOOD, processes=1, pair_tokenizer=pair_tokenizer(tiny_tokenizer(None)))


def test_the_example_shows_what_is_learned():
    example = first_example([chat(HI, chosen=""), chat(HI, chosen="Yes.", rejected="No.")], {0}, pair_tokenizer())
    assert example is not None
    assert (example.row, example.is_tokenized) == (1, True)
    assert example.prompt == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert example.chosen == (("Yes.<|im_end|>", True), ("\n", False))
    assert example.rejected == (("No.<|im_end|>", True), ("\n", False))


def test_the_example_without_a_tokenizer_is_the_row():
    example = first_example([{"no": "pair"}, chat(HI, chosen="Yes.", rejected="No.")], set())
    assert example is not None
    assert (example.row, example.prompt) == (1, "Hi")
    assert (example.chosen, example.rejected) == ((("Yes.", True),), (("No.", True),))
    assert first_example(GOOD, range(60)) is None
