"""Tokenize the rows of a dataset, and report which rows are kept, dropped and cut.

    rows -> formats.to_pair -> PairTokenizer.render -> PairTokenizer.encode -> one row of tokens per pair

``RowTokenizer`` adds dataset and row number to every error of a row. Rows in a list of dicts are passed on as JSON
strings: Arrow would refuse a column of mixed types without naming the row, and the checks of formats/ name it. Tokens
are kept for the next start (token_cache.py), not by ``datasets``: it would recognise a tokenizer by its pickle, which
changes with use, and write next to the user's files.
"""

from __future__ import annotations

import inspect
import json
import logging
import math
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from typing import Any, Literal

import datasets
import numpy as np
import pyarrow as pa
from transformers.utils import get_json_schema

from ..errors import DataError, RowError, UndecidedRow
from ..system.words import counted
from .checks.catalogue import NO_TURN_END, Hit
from .checks.rows import row_hits
from .checks.texts import PairTexts
from .formats import to_pair
from .formats.recognised import FORMAT_ROWS, located, recognised_format
from .processes import parallel_map, usable_processes
from .report import DataReport
from .sources.json_lines import JsonLines
from .sources.loading import rows_of_columns
from .spool import joined
from .token_cache import cached, token_key
from .tokens.pair_tokenizer import PairTokenizer
from .tokens.rendering import RenderedPair
from .tokens.tokenized import IN_TEMPLATE, OF_TEMPLATE, TEXT_COLUMNS, Dropped, Form, TokenizedPair
from .tokens.words import KnownWords

logger = logging.getLogger(__name__)

BATCH_ROWS = 500
ROWS_PER_PROCESS = 2_000  # a second of work; starting a process takes up to 0.05 s
STREAM_BATCH_ROWS = 32  # read ahead of need, so kept small
REPORT = b"report"  # in the metadata of a table

JSON_COLUMN = "json"  # the only column of rows that are passed on as JSON
IDS, NUMBER = datasets.List(datasets.Value("int32")), datasets.Value("int32")
TOKEN_COLUMNS: dict[str, Any] = {
    "row": datasets.Value("int64"),
    "chosen_input_ids": IDS,
    "chosen_prompt_tokens": NUMBER,
    "chosen_end": NUMBER,
    "chosen_gaps": IDS,
    "rejected_input_ids": IDS,
    "rejected_prompt_tokens": NUMBER,
    "rejected_end": NUMBER,
    "rejected_gaps": IDS,
}


@dataclass
class PreparedData:
    """Tokens to train or evaluate on."""

    # One row per pair, as ``TokenizedPair.to_row`` makes it; a stream stays a stream
    dataset: datasets.Dataset | datasets.IterableDataset
    report: DataReport  # of every row; that of a stream grows as it is read, in the process that reads it


def prepare(
    rows: Sequence[Mapping[str, Any]] | datasets.Dataset | datasets.IterableDataset,
    pair_tokenizer: PairTokenizer,
    *,
    bad_rows: Literal["error", "drop"] = "error",
    num_proc: int | None = None,
    source: str = "train",
    min_pairs: int | None = None,
    numbers: Sequence[int] | None = None,
    keep_columns: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> PreparedData:
    """Tokenize a dataset of preference pairs.

    Args:
        rows: The rows; an ``IterableDataset`` is tokenized as it is read.
        pair_tokenizer: Makes the tokens and drops what cannot be learned from.
        bad_rows: Stop at the first invalid row, or leave such rows out and count them. Rows of comparisons that
            prefer neither answer are left out and counted anyway.
        num_proc: Processes that tokenize; by default one per core, fewer for few rows. A stream ignores it.
        source: Name of the dataset in the report and in errors.
        min_pairs: Fewest pairs that are enough; by default 2 of the source ``"train"``, 1 of any other. A stream is
            only checked for being empty.
        numbers: The numbers of the rows, ascending, where they are a sample of a dataset; by default from 0 upwards.
        keep_columns: Whether the result also has the columns of the rows under names that no column of tokens or texts
            has; not those of a stream.
        progress: Called with the number of rows that are tokenized, and that of all, again and again.

    Returns:
        The tokens of the kept rows, and the report of all.

    Raises:
        RowError: A row is invalid or is refused by the chat template, with ``bad_rows="error"``.
        DataError: The dataset is empty, of an unknown format, holds both text and conversations without a decision
            (``chat_template_on_text``), or too few pairs are left of it.
        ModelError: The tokenizer lacks a chat template or an EOS token that is needed.
    """
    if not isinstance(rows, Sequence | datasets.Dataset | datasets.IterableDataset) or isinstance(rows, str):
        raise DataError(
            f"{source}: found {type(rows).__name__}; expected a list of rows, a datasets.Dataset or an IterableDataset"
        )
    if isinstance(rows, datasets.Dataset | datasets.IterableDataset):
        rows = rows.with_format(None)  # plain Python values, in whatever format the user reads it
    report = DataReport(
        source,
        recognised_format(rows, source, bad_rows),
        max_length=pair_tokenizer.max_length,
        most_tokens=pair_tokenizer.most_tokens,
        is_stream=isinstance(rows, datasets.IterableDataset),
    )
    tokenize = RowTokenizer(pair_tokenizer, bad_rows, source, numbers)
    if isinstance(rows, datasets.IterableDataset):
        report.forms = _first_form(rows, pair_tokenizer)
        return PreparedData(_tokenized_stream(rows, tokenize, report), report)
    given = rows
    if not isinstance(rows, datasets.Dataset | JsonLines):
        rows = _dataset(pa.table({JSON_COLUMN: pa.array([_as_json(row) for row in rows], pa.string())}))
    key = token_key(rows, pair_tokenizer, bad_rows) if numbers is None else None
    # The other processes of a run on this machine wait for what is kept, so that all cores work for this one.
    useful = min(usable_processes(shared=key is None), len(rows) // ROWS_PER_PROCESS)
    processes = useful if num_proc is None else num_proc
    table = cached(key, lambda: _tokenized(rows, tokenize, processes, progress))
    report.add(DataReport(source, report.format, **json.loads(table.schema.metadata[REPORT])))
    _require_decision(report, pair_tokenizer)
    _require_conversations(report, pair_tokenizer)
    require_pairs(report, min_pairs)
    table = table.replace_schema_metadata(None)
    return PreparedData(_dataset(_with_columns(table, given) if keep_columns else table), report)


def require_pairs(report: DataReport, min_pairs: int | None = None) -> None:
    """Refuse a dataset of which too few pairs are kept (``DataError``); ``min_pairs`` as in ``prepare``."""
    minimum = (2 if report.source == "train" else 1) if min_pairs is None else min_pairs
    if report.kept < minimum:
        found = f"{counted(report.kept, 'usable pair')} in {counted(report.rows, 'row')}"
        dropped = f" (dropped {report.dropped_in_words()})" if report.dropped else ""
        fix = "; set a chat template that renders them" if set(OF_TEMPLATE) & set(report.dropped) else ""
        keeps = f"; for the {len(report.too_long):,} too long: {advice}" if (advice := report.longer_limits()) else ""
        raise DataError(f"{report.source}: {found}{dropped}; expected at least {minimum}{fix}{keeps}")


def _first_form(rows: datasets.IterableDataset, pair_tokenizer: PairTokenizer) -> dict[str, int]:
    """Return the form of the first valid pair of a stream, of which no row is counted yet."""
    for row in islice(rows, FORMAT_ROWS):
        try:
            rendered = pair_tokenizer.render(to_pair(row))
        except RowError:
            continue
        if not isinstance(rendered, Dropped):
            return {} if rendered.form is None else {rendered.form: 0}
    return {}


def _require_decision(report: DataReport, pair_tokenizer: PairTokenizer) -> None:
    """Refuse conversations beside text without chat template, unless the settings ask for it."""
    if report.is_mixed and pair_tokenizer.chat_template_on_text is None:
        raise DataError(
            f"{report.source}: found {counted(report.forms[Form.TEXT], 'row')} of plain text and"
            f" {report.conversations:,} of messages; set chat_template_on_text to true, which puts the text"
            " into the chat template, too, or to false, which trains on it as it is"
        )


def _require_conversations(report: DataReport, pair_tokenizer: PairTokenizer) -> None:
    """Refuse text without chat template where the settings have a system message for the rows."""
    rendered = sum(report.forms.get(form, 0) for form in IN_TEMPLATE)
    if pair_tokenizer.system_prompt is None or rendered == report.kept:
        return
    has_template = pair_tokenizer.tokenizer.chat_template
    fix = "chat_template_on_text: true" if has_template else "chat_template: chatml and chat_template_on_text: true"
    raise DataError(
        f"{report.source}: system_prompt is set, but {counted(report.kept - rendered, 'row')} of"
        f" {report.kept:,} {'is' if report.kept - rendered == 1 else 'are'} text that no chat template renders; leave"
        f" system_prompt out, write it into the text, or set {fix}"
    )


@dataclass
class RowTokenizer:
    """Tokenize batches of rows, in this process or another one; fields are arguments of ``prepare``."""

    pair_tokenizer: PairTokenizer
    bad_rows: str
    source: str
    numbers: Sequence[int] | None = None
    known_words: KnownWords = field(default_factory=KnownWords)  # kept from batch to batch, in each process

    def __call__(
        self, columns: Mapping[str, Sequence[Any]] | list[Any], numbers: Sequence[int]
    ) -> tuple[pa.Table, DataReport]:
        """Return the kept rows of a batch as columns of tokens, and the report of all its rows."""
        report = DataReport(self.source, "")
        if self.numbers is not None:
            numbers = [self.numbers[position] for position in numbers]
        return _table(self.kept_rows(columns, numbers, report), self.pair_tokenizer), report

    def kept_rows(
        self, columns: Mapping[str, Sequence[Any]] | list[Any], numbers: Sequence[int], report: DataReport
    ) -> list[dict[str, Any]]:
        """Return the kept rows of a batch; count each row in ``report`` unless it is there from an earlier epoch."""
        rows: list[Any]
        if isinstance(columns, list):
            rows = columns
        elif list(columns) == [JSON_COLUMN]:
            rows = [json.loads(text) for text in columns[JSON_COLUMN]]
        else:
            rows = rows_of_columns(columns)
        rendered, hits = zip(*map(self._render, rows, numbers), strict=True) if rows else ((), ())
        outcomes = self.pair_tokenizer.encode(rendered, self.known_words)
        for number, outcome, odd in zip(numbers, outcomes, hits, strict=True):
            if number >= report.rows:
                report.count(number, outcome, odd)
        kept = zip(numbers, outcomes, strict=True)
        return [outcome.to_row(number) for number, outcome in kept if isinstance(outcome, TokenizedPair)]

    def _render(self, row: Any, number: int) -> tuple[RenderedPair | Dropped, list[Hit]]:
        """Return the text of a row, or why it is dropped, and what is odd about it."""
        try:
            pair = to_pair(row)
            rendered, hits = self.pair_tokenizer.render(pair), list(row_hits(row, pair, PairTexts.of(pair)))
            is_in_template = isinstance(rendered, RenderedPair) and rendered.form in IN_TEMPLATE
            if is_in_template and self.pair_tokenizer.renderer.end_of_turn is None:
                hits.append((NO_TURN_END, "answers"))
            return rendered, hits
        except RowError as error:
            if self.bad_rows == "drop" or isinstance(error, UndecidedRow):
                return Dropped(error.reason), []
            raise located(error, number, self.source, self.bad_rows) from error


def _features(pair_tokenizer: PairTokenizer) -> datasets.Features:
    """Return the columns of tokens and their types."""
    of_encoder = {"prompt_input_ids": IDS} if pair_tokenizer.is_encoder_decoder else {}
    return datasets.Features(TOKEN_COLUMNS | of_encoder | dict.fromkeys(TEXT_COLUMNS, datasets.Value("string")))


def dataset_of_rows(rows: Sequence[Mapping[str, Any]], pair_tokenizer: PairTokenizer) -> datasets.Dataset:
    """Make a dataset of rows of ``TokenizedPair.to_row``."""
    return _dataset(_table(rows, pair_tokenizer))


def _table(rows: Sequence[Mapping[str, Any]], pair_tokenizer: PairTokenizer) -> pa.Table:
    schema = _features(pair_tokenizer).arrow_schema
    return pa.table([_column([row[name] for row in rows], schema.field(name).type) for name in schema.names], schema)


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Make a column of an Arrow table; lists of ids go through one numpy array, which is faster than list by list."""
    if not pa.types.is_list(kind):
        return pa.array(values, kind)
    offsets = np.zeros(len(values) + 1, dtype=np.int32)
    np.cumsum([len(ids) for ids in values], out=offsets[1:])
    return pa.ListArray.from_arrays(offsets, np.fromiter(chain.from_iterable(values), np.int32, offsets[-1]))


def _tokenized(
    rows: datasets.Dataset | JsonLines,
    tokenize: RowTokenizer,
    processes: int,
    progress: Callable[[int, int], object] | None,
) -> pa.Table:
    """Return the kept rows; the report of all rows is in the metadata of the schema."""
    size = min(BATCH_ROWS, math.ceil(len(rows) / max(1, processes)))
    spans = [range(start, min(start + size, len(rows))) for start in range(0, len(rows), size)]
    report = DataReport(tokenize.source, "")

    def tables() -> Iterator[pa.Table]:
        for table, part in parallel_map(partial(_tokenized_span, rows, tokenize), spans, processes):
            report.add(part)
            bar.update(part.rows)
            if progress:
                progress(report.rows, len(rows))
            yield table

    with datasets.utils.tqdm(
        total=len(rows), desc=f"{tokenize.source}: tokenizing", unit=" pairs", disable=None
    ) as bar:
        table = joined(tables())
    numbers = {
        name: getattr(report, name)
        for name in ("rows", "kept", "dropped", "cut", "left_out", "odd", "forms", "longest_tokens", "too_long")
    }
    return table.replace_schema_metadata({REPORT: json.dumps(numbers)})


def _tokenized_span(
    rows: datasets.Dataset | JsonLines, tokenize: RowTokenizer, span: range
) -> tuple[pa.Table, DataReport]:
    return tokenize(rows[span.start : span.stop], span)


def _tokenized_stream(
    rows: datasets.IterableDataset, tokenize: RowTokenizer, report: DataReport
) -> datasets.IterableDataset:
    """Return the kept rows as they are read; the first epoch counts them in ``report``."""
    features = _features(tokenize.pair_tokenizer)

    def tokenize_batch(columns: Mapping[str, Sequence[Any]], numbers: Sequence[int]) -> dict[str, list[Any]]:
        kept = tokenize.kept_rows(columns, numbers, report)
        _require_decision(report, tokenize.pair_tokenizer)
        _require_conversations(report, tokenize.pair_tokenizer)
        return {name: [row[name] for row in kept] for name in features}

    columns = rows.column_names
    if columns is None:  # made by a generator, so that they may differ from row to row
        columns = [JSON_COLUMN]
        rows = rows.map(lambda row: {JSON_COLUMN: _as_json(row)}).select_columns(columns)
    return rows.map(
        tokenize_batch,
        with_indices=True,
        batched=True,
        batch_size=STREAM_BATCH_ROWS,
        remove_columns=columns,
        features=features,
    )


def _with_columns(table: pa.Table, rows: Sequence[Mapping[str, Any]] | datasets.Dataset) -> pa.Table:
    """Add the other columns of the rows that a table of tokens was made of; a column of mixed types is left out."""
    kept = table["row"].to_pylist()
    if isinstance(rows, datasets.Dataset):
        names = [name for name in rows.column_names if name not in table.column_names]
        found = rows.select_columns(names).with_format("arrow")[kept] if names else pa.table({})
        columns = {name: found[name] for name in names}
    else:
        names = [name for name in dict.fromkeys(chain.from_iterable(rows)) if name not in table.column_names]
        columns = {name: [rows[number].get(name) for number in kept] for name in names}
    for name, values in columns.items():
        try:
            table = table.append_column(name, values if isinstance(values, pa.ChunkedArray) else [values])
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            logger.warning("column %s is left out of the batches: %s", name, str(error).splitlines()[0])
    return table


def _dataset(table: pa.Table) -> datasets.Dataset:
    """Make a dataset of a table, with a random fingerprint: computing one takes time, and nothing looks it up."""
    return datasets.Dataset(table, fingerprint=uuid.uuid4().hex)


def _as_json(row: Any) -> str:
    return json.dumps(row, default=_json_value)


def _json_value(value: Any) -> Any:
    """Return a function as the schema of a tool, an array as a list, and anything else as null."""
    if inspect.isfunction(value):
        return get_json_schema(value)
    return value.tolist() if hasattr(value, "tolist") else None
