"""Rows of tokens as numpy arrays are those of the dataset."""

from __future__ import annotations

import pickle

import datasets
import numpy as np
import pytest

from oddsmith.data.prepare import prepare
from oddsmith.data.token_rows import TokenRows
from oddsmith.data.tokenize import PairTokenizer
from tests.tiny import ragged_pairs, tiny_tokenizer


def tokens(rows: int = 20, **options) -> datasets.Dataset:
    return prepare(ragged_pairs(rows), PairTokenizer(tiny_tokenizer(), max_length=64, **options)).dataset


def assert_same(rows: TokenRows, dataset: datasets.Dataset) -> None:
    assert len(rows) == len(dataset)
    for position, expected in enumerate(dataset):
        row = rows[position]
        assert list(row) == list(expected)
        for name, value in expected.items():
            if isinstance(value, list):
                assert row[name].dtype == np.int32
                assert row[name].tolist() == value
            else:
                assert type(row[name]) is int
                assert row[name] == value


@pytest.mark.parametrize("is_encoder_decoder", (False, True))
def test_same_rows(is_encoder_decoder):
    dataset = tokens(is_encoder_decoder=is_encoder_decoder)
    assert_same(TokenRows(dataset), dataset)


def test_parts_and_orders_of_a_dataset():
    dataset = tokens()
    for part in (dataset.shuffle(seed=0), dataset.select(range(5, 9)), dataset.select([3, 3, 0]), dataset.select([])):
        assert_same(TokenRows(part), part)


def test_rows_from_several_batches():
    dataset = datasets.concatenate_datasets([tokens(3), tokens(5).select(range(1, 4)), tokens(2)])
    assert_same(TokenRows(dataset), dataset)


def test_other_columns_are_left_out():
    dataset = tokens(3)
    assert_same(TokenRows(dataset.add_column("note", ["a", "b", "c"])), dataset)


def test_tokens_are_not_copied():
    dataset = tokens()
    row = TokenRows(dataset)[4]
    assert not row["chosen_input_ids"].flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        row["chosen_input_ids"][0] = 0


def test_can_be_sent_to_another_process():
    dataset = tokens()
    assert_same(pickle.loads(pickle.dumps(TokenRows(dataset))), dataset)


@pytest.mark.parametrize("position", (-1, 20))
def test_no_such_row(position):
    with pytest.raises(IndexError, match=f"row {position} of 20"):
        TokenRows(tokens())[position]
