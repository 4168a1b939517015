"""Check that a model can read tokenized pairs: it has an embedding for every id, and a position for every token.

A row that is too large ends in an IndexError in the middle of a run, or on a GPU in an error that names nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import RowError
from ..system.words import counted

BATCH_ROWS = 10_000
NO_EMBEDDING, TOO_LONG = "token without embedding", "too many tokens"
_COLUMNS = (
    "row", "chosen_input_ids", "chosen_end", "rejected_input_ids", "rejected_end", "prompt_input_ids",
)  # fmt: skip


class ModelLimits(NamedTuple):
    """How much a model can read."""

    embeddings: int  # token ids are below this
    positions: int | None = None  # most tokens of a sequence; None: any number


class Misfit(NamedTuple):
    """What a model cannot read of a row."""

    reason: str  # ``NO_EMBEDDING`` or ``TOO_LONG``
    number: int  # the token id, or how many tokens
    setting: str = ""  # what cuts a sequence that is too long

    def error(self, limits: ModelLimits, tokenizer: Any, source: str, row: int, more: int = 0) -> RowError:
        """Return the error for a row of a dataset, ``more`` of which have a misfit."""
        others = f" (and {counted(more, 'more row')} cannot be read)" if more else ""
        if self.reason == NO_EMBEDDING:
            token = tokenizer.convert_ids_to_tokens(self.number)
            named = "" if token is None else f" ({token!r})"
            detail = (
                f"token {self.number}{named} has no row among the model's {limits.embeddings:,} embeddings{others}; use"
                " the model's own tokenizer, or add rows:"
                f" model.resize_token_embeddings({max(len(tokenizer), self.number + 1)})"
            )
        else:
            detail = (
                f"the model's {limits.positions:,} positions are too few for {counted(self.number, 'token')}{others};"
                f" set {self.setting} to {limits.positions} (--{self.setting} {limits.positions})"
            )
        return RowError(self.reason, detail, row, source)


def misfit_of(row: Mapping[str, Any], limits: ModelLimits) -> Misfit | None:
    """Return what a model cannot read of a tokenized row, which is a row of ``PreparedData.dataset``."""
    for ids, setting in _sequences(row):
        if len(ids) and max(ids) >= limits.embeddings:
            return Misfit(NO_EMBEDDING, int(next(token for token in ids if token >= limits.embeddings)))
        if limits.positions is not None and len(ids) > limits.positions:
            return Misfit(TOO_LONG, len(ids), setting)
    return None


def _sequences(row: Mapping[str, Any]) -> Iterator[tuple[Any, str]]:
    """Yield what a model reads of a row, each with the setting that bounds its length."""
    prompt = row.get("prompt_input_ids")
    is_encoder_decoder = prompt is not None and len(prompt) > 0
    if is_encoder_decoder:
        yield prompt, "max_length"
    for side in ("chosen", "rejected"):
        yield (
            row[f"{side}_input_ids"][: row[f"{side}_end"]],
            "max_completion_length" if is_encoder_decoder else "max_length",
        )


def readable(rows: Any, limits: ModelLimits, tokenizer: Any, source: str) -> Any:
    """Require that a model can read all rows of a tokenized dataset; those of a stream, as they come.

    Args:
        rows: The dataset or stream.
        limits: Those of the model.
        tokenizer: Its tokenizer, which knows what a token is called.
        source: Name of the dataset in errors.

    Returns:
        The same rows.

    Raises:
        RowError: One cannot be read; the first one is named, and how many there are.
    """
    if isinstance(rows, datasets.IterableDataset):
        check = partial(_readable_row, limits=limits, tokenizer=tokenizer, source=source)
        return rows.map(check, features=rows.features)
    first, found = None, 0
    columns = [name for name in _COLUMNS if name in rows.column_names]
    for table in rows.select_columns(columns).with_format("arrow").iter(BATCH_ROWS):
        if not _may_have_misfit(table, limits):
            continue
        for row in table.to_pylist():
            if (misfit := misfit_of(row, limits)) is not None:
                first, found = first or (misfit, row["row"]), found + 1
    if first is not None:
        raise first[0].error(limits, tokenizer, source, first[1], more=found - 1)
    return rows


def _readable_row(row: Mapping[str, Any], limits: ModelLimits, tokenizer: Any, source: str) -> Mapping[str, Any]:
    if (misfit := misfit_of(row, limits)) is not None:
        raise misfit.error(limits, tokenizer, source, row["row"])
    return row


def _may_have_misfit(table: pa.Table, limits: ModelLimits) -> bool:
    """Return whether any id or length is too large, with what comes after the end of an answer."""
    for name in table.column_names:
        if name.endswith("input_ids"):
            ids = table[name]
            if (pc.max(pc.list_flatten(ids)).as_py() or 0) >= limits.embeddings:
                return True
            if limits.positions is not None and (pc.max(pc.list_value_length(ids)).as_py() or 0) > limits.positions:
                return True
    return False
