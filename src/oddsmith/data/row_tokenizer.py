"""Batches of rows, as ``datasets`` hands them out, to the columns of a prepared dataset."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets

from ..errors import RowError
from .formats import to_pair
from .render import RenderedPair
from .tokenize import PairTokenizer
from .tokenized import Dropped, TokenizedPair

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
# What the report is made of: why the row was dropped ("": it was not), its longest sequence, the sides that were cut.
ACCOUNT_COLUMNS: dict[str, Any] = {
    "dropped": datasets.Value("string"),
    "tokens": NUMBER,
    "cut": datasets.Value("string"),
}
NO_TOKENS = TokenizedPair([], [], 0, 0, 0, 0)


@dataclass
class RowTokenizer:
    """Rows to tokens, as a function that ``datasets`` can send to other processes.

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

    def __call__(self, columns: Mapping[str, Sequence[Any]], numbers: Sequence[int]) -> dict[str, list[Any]]:
        """Token and account columns of a batch, one entry a row; those of a dropped row are empty."""
        batch: dict[str, list[Any]] = {name: [] for name in self.columns(with_account=True)}
        for number, outcome in zip(numbers, self.outcomes(columns, numbers), strict=True):
            pair = NO_TOKENS if isinstance(outcome, Dropped) else outcome
            values = token_row(number, pair) | {
                "dropped": outcome.reason if isinstance(outcome, Dropped) else "",
                "tokens": pair.longest_tokens,
                "cut": " ".join(pair.cut_sides),
            }
            for name in batch:
                batch[name].append(values[name])
        return batch

    def columns(self, *, with_account: bool = False) -> datasets.Features:
        """The columns of the result and their types."""
        encoder = {"prompt_input_ids": IDS} if self.pair_tokenizer.is_encoder_decoder else {}
        return datasets.Features(TOKEN_COLUMNS | encoder | (ACCOUNT_COLUMNS if with_account else {}))

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
