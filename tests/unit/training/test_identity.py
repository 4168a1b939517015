"""The digest by which a resumed run knows its pairs."""

import datasets

from oddsmith.data.prepare import prepare
from oddsmith.data.tokens.pair_tokenizer import PairTokenizer
from oddsmith.training.identity import _digest
from tests.pairs import assistant, user
from tests.templates import SMOLLM2

ROWS = [{"prompt": [user("Hi")], "chosen": [assistant(text)], "rejected": [assistant("No.")]} for text in ("A", "B")]
DIALOGUE = ROWS[0] | {"chosen": [assistant("A"), user("?"), assistant("B")]}


def tokens(rows: list[dict]):
    return prepare(rows, PairTokenizer(SMOLLM2.tokenizer(), max_length=None)).dataset


def stream_of(rows: list[dict]) -> datasets.IterableDataset:
    return datasets.IterableDataset.from_generator(lambda: iter(rows))


def test_columns_of_gaps_that_no_pair_has_do_not_count():
    for rows in (tokens(ROWS), tokens(stream_of(ROWS))):
        assert _digest(rows) == _digest(rows.remove_columns(["chosen_gaps", "rejected_gaps"]))


def test_gaps_count():
    rows = tokens([*ROWS, DIALOGUE])
    without = rows.map(lambda row: row | {"chosen_gaps": []}, features=rows.features)
    assert _digest(rows) != _digest(without)
