"""Batches of rows, as ``datasets`` hands them out, to the columns of a prepared dataset."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from ..errors import RowError
from .formats import to_pair
from .report import DataReport
from .tokens.pair_tokenizer import PairTokenizer
from .tokens.rendering import RenderedPair
from .tokens.tokenized import Dropped, TokenizedPair

JSON_COLUMN = "json"  # the only column of rows that travel as JSON
IDS, NUMBER = datasets.List(datasets.Value("int32")), datasets.Value("int32")
TOKEN_COLUMNS: dict[str, Any] = {
    "row": datasets.Value("int64"),
    "chosen_input_ids": IDS,
    "chosen_prompt_tokens": NUMBER,
    "chosen_end": NUMBER,
    "rejected_input_ids": IDS,
    "rejected_prompt_tokens": NUMBER,
    "rejected_end": NUMBER,
}


@dataclass
class RowTokenizer:
    """Rows to tokens, as a function that other processes can be given.

    Args:
        pair_tokenizer: Makes the tokens.
        bad_rows: ``"error"`` raises at a row that is no pair, ``"drop"`` gives it back as dropped.
        source: Name of the dataset, for errors.
    """

    pair_tokenizer: PairTokenizer
    bad_rows: str
    source: str

    def outcomes(self, columns: Mapping[str, Sequence[Any]], numbers: Sequence[int]) -> list[TokenizedPair | Dropped]:
        """What becomes of each row of a batch of columns; ``numbers`` are the row numbers."""
        if list(columns) == [JSON_COLUMN]:
            rows: list[Any] = [json.loads(text) for text in columns[JSON_COLUMN]]
        else:
            rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return self.pair_tokenizer.encode([self._render(row, n) for row, n in zip(rows, numbers, strict=True)])

    def __call__(self, columns: Mapping[str, Sequence[Any]], numbers: Sequence[int]) -> tuple[pa.Table, DataReport]:
        """The kept rows of a batch as columns of tokens, and the account of all its rows."""
        kept, report = [], DataReport(self.source, "")
        for number, outcome in zip(numbers, self.outcomes(columns, numbers), strict=True):
            if isinstance(outcome, Dropped):
                report.add_dropped(number, outcome.reason)
            else:
                report.add_kept(number, outcome.longest_tokens, outcome.cut_sides)
                kept.append(token_row(number, outcome))
        schema = self.columns().arrow_schema
        return pa.table(
            [_column([row[name] for row in kept], schema.field(name).type) for name in schema.names], schema
        ), report

    def columns(self) -> datasets.Features:
        """The columns of the result and their types."""
        return datasets.Features(
            TOKEN_COLUMNS | ({"prompt_input_ids": IDS} if self.pair_tokenizer.is_encoder_decoder else {})
        )

    def _render(self, row: Any, number: int) -> RenderedPair | Dropped:
        try:
            return self.pair_tokenizer.render(to_pair(row))
        except RowError as error:
            if self.bad_rows == "drop":
                return Dropped(error.reason)
            raise located(error, number, self.source, self.bad_rows) from error


def located(error: RowError, number: int, source: str, bad_rows: str) -> RowError:
    """The error with its row and dataset and, where rows need not stop the run, the way around it."""
    hint = "; bad_rows=drop leaves such rows out" if bad_rows == "error" else ""
    return RowError(error.reason, error.detail + hint, number, source)


def token_row(number: int, pair: TokenizedPair) -> dict[str, Any]:
    """A tokenized pair as a row of the prepared dataset."""
    return {
        "row": number,
        "chosen_input_ids": pair.chosen_ids,
        "chosen_prompt_tokens": pair.chosen_prompt_tokens,
        "chosen_end": pair.chosen_end,
        "rejected_input_ids": pair.rejected_ids,
        "rejected_prompt_tokens": pair.rejected_prompt_tokens,
        "rejected_end": pair.rejected_end,
        "prompt_input_ids": pair.prompt_ids,
    }


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    """One column of an Arrow table; lists of ids as one array of numpy, which is faster than list by list."""
    if not pa.types.is_list(kind):
        return pa.array(values, kind)
    offsets = np.zeros(len(values) + 1, dtype=np.int32)
    np.cumsum([len(ids) for ids in values], out=offsets[1:])
    return pa.ListArray.from_arrays(offsets, np.fromiter(chain.from_iterable(values), np.int32, offsets[-1]))
