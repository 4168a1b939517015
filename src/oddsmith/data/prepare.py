"""From rows, in any of the known formats, to a dataset of tokens and an account of what became of every row.

A list of dicts travels as JSON strings, so that a null or a number where the other rows have text is met by our check
of that row and not by Arrow's of the column. What is tokenized is kept for the next start (token_cache.py), never by
``datasets``: it would recognise a tokenizer by its pickle, which changes with use, and write next to the user's files.
"""

from __future__ import annotations

import inspect
import json
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Literal

import datasets
import pyarrow as pa
from transformers.utils import get_json_schema

from ..errors import DataError, RowError
from .formats import format_of
from .processes import mapped, usable_processes
from .report import DataReport, counted
from .row_tokenizer import JSON_COLUMN, RowTokenizer, located, token_row
from .token_cache import cached, token_key
from .tokens.pair_tokenizer import PairTokenizer
from .tokens.tokenized import Dropped

BATCH_ROWS = 500
ROWS_PER_PROCESS = 2_000  # a second of work; starting a process takes up to 0.05 s
STREAM_BATCH_ROWS = 32  # read ahead of need, so kept small
FORMAT_ROWS = 100  # so many rows at the front may be faulty before a dataset counts as of an unknown format
ACCOUNT = b"account"


@dataclass
class PreparedData:
    """Tokens to train or evaluate on.

    Args:
        dataset: One row a pair: ``row`` (its number in the source), and for chosen and rejected ``*_input_ids``,
            ``*_prompt_tokens``, ``*_end``, as in ``TokenizedPair``; encoder-decoder: also ``prompt_input_ids``.
            A stream stays a stream.
        report: What became of every row. That of a stream grows as it is read, in the process that reads it.
    """

    dataset: datasets.Dataset | datasets.IterableDataset
    report: DataReport


def prepare(
    rows: Sequence[Mapping[str, Any]] | datasets.Dataset | datasets.IterableDataset,
    pair_tokenizer: PairTokenizer,
    *,
    bad_rows: Literal["error", "drop"] = "error",
    num_proc: int | None = None,
    source: str = "train",
    least_pairs: int | None = None,
) -> PreparedData:
    """Tokenize a dataset of preference pairs.

    Args:
        rows: The rows; an ``IterableDataset`` is tokenized as it is read.
        pair_tokenizer: Makes the tokens and drops what cannot be learned from.
        bad_rows: Stop at the first row that is no preference pair, or leave such rows out and count them.
        num_proc: Processes that tokenize; by default as many as pay. A stream is tokenized where it is read.
        source: Name of the dataset in the report and in errors.
        least_pairs: Fewest pairs that are enough; by default 2 of the source ``"train"``, 1 of any other. A stream is
            only checked for being empty.

    Returns:
        The tokens of the kept rows, and the account of all.

    Raises:
        RowError: A row is no preference pair or is refused by the chat template, with ``bad_rows="error"``.
        DataError: The dataset is empty, of an unknown format, or too few pairs are left of it.
        ModelError: The tokenizer lacks a chat template or an EOS token that is needed.
    """
    if not isinstance(rows, Sequence | datasets.Dataset | datasets.IterableDataset) or isinstance(rows, str):
        raise DataError(
            f"{source}: found {type(rows).__name__}; expected a list of rows, a datasets.Dataset or an IterableDataset"
        )
    if isinstance(rows, datasets.Dataset | datasets.IterableDataset):
        rows = rows.with_format(None)  # plain Python values, whatever the user reads it as
    report = DataReport(
        source,
        _recognised_format(rows, source, bad_rows),
        max_length=pair_tokenizer.max_length,
        is_stream=isinstance(rows, datasets.IterableDataset),
    )
    tokenize = RowTokenizer(pair_tokenizer, bad_rows, source)
    if isinstance(rows, datasets.IterableDataset):
        return PreparedData(_tokenized_stream(rows, tokenize, report), report)
    if not isinstance(rows, datasets.Dataset):
        rows = _dataset(pa.table({JSON_COLUMN: pa.array([_as_json(row) for row in rows], pa.string())}))
    table = cached(token_key(rows, pair_tokenizer, bad_rows), lambda: _tokenized(rows, tokenize, num_proc))
    report.add(DataReport(source, report.format, **json.loads(table.schema.metadata[ACCOUNT])))
    _require_pairs(report, (2 if source == "train" else 1) if least_pairs is None else least_pairs)
    return PreparedData(_dataset(table.replace_schema_metadata(None)), report)


def _dataset(table: pa.Table) -> datasets.Dataset:
    """A table as a dataset; by its fingerprint, which would otherwise be computed, nobody is to find it again."""
    return datasets.Dataset(table, fingerprint=uuid.uuid4().hex)


def _tokenized(rows: datasets.Dataset, tokenize: RowTokenizer, num_proc: int | None) -> pa.Table:
    """The kept rows; the account of all rows is in the metadata of the schema."""
    processes = min(usable_processes(), len(rows) // ROWS_PER_PROCESS) if num_proc is None else num_proc
    size = min(BATCH_ROWS, math.ceil(len(rows) / max(1, processes)))
    spans = [range(start, min(start + size, len(rows))) for start in range(0, len(rows), size)]
    account, tables = DataReport(tokenize.source, ""), []
    results = mapped(partial(_tokenized_span, rows, tokenize), spans, processes)
    with datasets.utils.tqdm(total=len(rows), desc=f"{tokenize.source}: tokenizing", disable=None) as progress:
        for table, part in results:
            tables.append(table)
            account.add(part)
            progress.update(part.rows)
    numbers = {name: getattr(account, name) for name in ("rows", "kept", "dropped", "cut", "longest_tokens")}
    return pa.concat_tables(tables).replace_schema_metadata({ACCOUNT: json.dumps(numbers)})


def _tokenized_span(rows: datasets.Dataset, tokenize: RowTokenizer, span: range) -> tuple[pa.Table, DataReport]:
    return tokenize(rows[span.start : span.stop], span)


def _tokenized_stream(
    rows: datasets.IterableDataset, tokenize: RowTokenizer, report: DataReport
) -> datasets.IterableDataset:
    """The kept rows as they are read. A row is counted when it is read first, not in later epochs."""

    def tokenize_some(columns: Mapping[str, Sequence[Any]], numbers: Sequence[int]) -> dict[str, list[Any]]:
        batch: dict[str, list[Any]] = {name: [] for name in features}
        for number, outcome in zip(numbers, tokenize.outcomes(columns, numbers), strict=True):
            is_new = number >= report.rows
            if isinstance(outcome, Dropped):
                if is_new:
                    report.add_dropped(number, outcome.reason)
                continue
            if is_new:
                report.add_kept(number, outcome.longest_tokens, outcome.cut_sides)
            values = token_row(number, outcome)
            for name in batch:
                batch[name].append(values[name])
        return batch

    features = tokenize.columns()
    columns = rows.column_names
    if columns is None:  # made by a generator, so that they may differ from row to row
        columns = [JSON_COLUMN]
        rows = rows.map(_as_json_row).select_columns(columns)
    return rows.map(
        tokenize_some,
        with_indices=True,
        batched=True,
        batch_size=STREAM_BATCH_ROWS,
        remove_columns=columns,
        features=features,
    )


def _recognised_format(rows: Any, source: str, bad_rows: str) -> str:
    """The format of the first row that has one; only the very first is asked where bad rows are errors."""
    problem: DataError | None = None
    for number, row in enumerate(islice(rows, 1 if bad_rows == "error" else FORMAT_ROWS)):
        try:
            return format_of(row)
        except RowError as error:
            problem = problem or located(error, number, source, bad_rows)
        except DataError as error:
            problem = problem or DataError(f"{source}: {error}")
    raise problem or DataError(f"{source}: the dataset is empty; expected rows with a prompt and two answers")


def _require_pairs(report: DataReport, least: int) -> None:
    if report.kept >= least:
        return
    found = f"{counted(report.kept, 'usable pair')} in {counted(report.rows, 'row')}"
    dropped = f" (dropped {report.dropped_in_words()})" if report.dropped else ""
    raise DataError(f"{report.source}: {found}{dropped}; expected at least {least}")


def _as_json_row(row: Any) -> dict[str, str]:
    return {JSON_COLUMN: _as_json(row)}


def _as_json(row: Any) -> str:
    return json.dumps(row, default=_json_value)


def _json_value(value: Any) -> Any:
    """What stands in JSON for a value that it cannot hold: null, which is an error only where it matters."""
    if inspect.isfunction(value):  # a tool
        return get_json_schema(value)
    return value.tolist() if hasattr(value, "tolist") else None
