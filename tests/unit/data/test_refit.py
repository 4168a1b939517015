"""Pairs that were tokenized whole and then cut are those that are tokenized with the limit."""

from dataclasses import replace

import pytest

from oddsmith.data.prepare import prepare
from oddsmith.data.refit import refit
from oddsmith.data.tokens.pair_tokenizer import PairTokenizer
from tests.templates import SMOLLM2
from tests.tiny import ragged_pairs, tiny_tokenizer

USER = [{"role": "user", "content": "What is it like outside, at this time of the year?"}]
TOOLS = [
    {"role": "assistant", "content": "Let me look."},
    {"role": "user", "content": "Wet."},
    {"role": "assistant", "content": "It rains, so take an umbrella with you."},
]
CONVERSATIONS = [
    {"prompt": USER, "chosen": TOOLS, "rejected": [{"role": "assistant", "content": "It is dry."}]},
    {"prompt": USER, "chosen": TOOLS, "rejected": [*TOOLS[:2], {"role": "assistant", "content": "It rains. Stay."}]},
    {"prompt": USER, "chosen": TOOLS, "rejected": []},
]
TEXTS = [*ragged_pairs(40), {"prompt": "Same? ", "chosen": "Yes", "rejected": "Yes"}, {"prompt": "Bad? "}]


@pytest.mark.parametrize("is_encoder_decoder", [False, True], ids=["decoder", "encoder-decoder"])
@pytest.mark.parametrize("max_prompt_length", [None, 12])
@pytest.mark.parametrize("max_length", [8, 24, 96, 10_000])
@pytest.mark.parametrize("rows", [TEXTS, CONVERSATIONS], ids=["text", "conversations"])
def test_a_cut_of_whole_pairs_is_what_tokenizing_with_the_limit_makes(
    rows, max_length, max_prompt_length, is_encoder_decoder
):
    if rows is CONVERSATIONS and is_encoder_decoder:
        rows = [row | {"chosen": row["chosen"][-1:], "rejected": row["rejected"][-1:]} for row in rows]
    tokenizer = tiny_tokenizer(SMOLLM2 if rows[0]["prompt"] is USER else None, bos="<s>", eos="</s>")
    pair_tokenizer = PairTokenizer(
        tokenizer,
        max_length=None,
        max_prompt_length=min(max_prompt_length, max_length) if max_prompt_length else None,
        is_encoder_decoder=is_encoder_decoder,
        max_completion_length=20,
    )
    whole = prepare(rows, pair_tokenizer, bad_rows="drop", min_pairs=0)
    pair_tokenizer.max_length = max_length
    cut, expected = refit(whole, pair_tokenizer), prepare(rows, pair_tokenizer, bad_rows="drop", min_pairs=0)
    assert cut.dataset.features == expected.dataset.features
    assert cut.dataset[:] == expected.dataset[:]
    forms = expected.report.forms
    assert replace(cut.report, forms=forms, too_long=[]) == replace(expected.report, too_long=[])
    lengths = [sorted(map(tuple, report.too_long)) for report in (cut.report, expected.report)]
    assert lengths[0] == lengths[1]
