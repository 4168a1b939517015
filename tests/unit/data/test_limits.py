"""Tokens that a model cannot read are found before it reads them, and named with their row."""

import pytest
from datasets import Dataset, IterableDataset

from oddsmith.data.limits import ModelLimits, misfit_of, readable
from oddsmith.errors import RowError
from tests.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
LIMITS = ModelLimits(embeddings=256, positions=8)


def row(number: int, chosen: list[int], rejected: tuple[int, ...] = (1, 2), end: int | None = None, **more):
    return {
        "row": number, "chosen_input_ids": chosen, "chosen_end": len(chosen) if end is None else end,
        "rejected_input_ids": list(rejected), "rejected_end": len(rejected), **more,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (row(0, [1, 255, 3]), None),
        (row(0, [1, 256, 3]), ("token without embedding", 256, "")),
        (row(0, [1, 2], (1, 257)), ("token without embedding", 257, "")),
        (row(0, [1] * 8), None),
        (row(0, [1] * 9), ("too many tokens", 9, "max_length")),
        (row(0, [1] * 8 + [300], end=8), None),
        (row(0, [1], prompt_input_ids=[1] * 9), ("too many tokens", 9, "max_length")),
        (row(0, [1] * 9, prompt_input_ids=[1]), ("too many tokens", 9, "max_completion_length")),
        (row(0, [1], prompt_input_ids=[256]), ("token without embedding", 256, "")),
    ],
    ids=[
        "last id",
        "one more",
        "rejected",
        "as many",
        "too many",
        "after the end",
        "encoder",
        "decoder",
        "encoder's id",
    ],
)
def test_what_cannot_be_read(made, expected):
    assert misfit_of(made, LIMITS) == expected


def test_any_length_can_be_read_where_positions_are_computed():
    assert misfit_of(row(0, [1] * 5000), ModelLimits(256)) is None


def test_the_first_row_is_named_and_the_others_are_counted():
    rows = Dataset.from_list([row(4, [1, 2]), row(7, [1, 257]), row(9, [1, 2]), row(11, [257])])
    with pytest.raises(RowError) as caught:
        readable(rows, LIMITS, TOKENIZER, "train")
    assert str(caught.value) == (
        "train, row 7: token without embedding: token 257 ('<|im_end|>') has no row among the model's 256 embeddings"
        " (and 1 more row cannot be read); use the model's own tokenizer, or add rows:"
        " model.resize_token_embeddings(258)"
    )


def test_the_setting_that_cuts_long_rows_is_named():
    with pytest.raises(RowError) as caught:
        readable(Dataset.from_list([row(0, [1] * 30)]), LIMITS, TOKENIZER, "eval")
    assert str(caught.value) == (
        "eval, row 0: too many tokens: the model's 8 positions are too few for 30 tokens; set max_length to 8"
        " (--max_length 8)"
    )


def test_rows_of_a_stream_are_named_as_they_come():
    rows = [row(0, [1, 2]), row(1, [1] * 9)]
    columns = Dataset.from_list(rows).features
    stream = readable(IterableDataset.from_generator(lambda: iter(rows), features=columns), LIMITS, TOKENIZER, "train")
    assert stream.column_names == list(columns)
    read = iter(stream)
    assert next(read)["row"] == 0
    with pytest.raises(RowError, match="train, row 1: too many tokens"):
        next(read)
