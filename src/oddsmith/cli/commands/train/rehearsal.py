"""Read and tokenize the rows of a run without training on them: what is kept, what is refused, how a pair looks.

The rows are read, recognised, rendered and tokenized by the code of the run. A sample of each dataset is, or all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from datasets import IterableDataset

from ....data.checks.example import Example, example_of
from ....data.formats import to_pair
from ....data.limits import ModelLimits, readable
from ....data.prepare import prepare, require_pairs
from ....data.refit import refit
from ....data.tokens.pair_tokenizer import PairTokenizer
from ....errors import DataError, RowError
from ....model.loading.outline import outlined_limits
from ...parsing.resolve import Settings
from .assembly import is_encoder_decoder_by_config, load_its_tokenizer, read_rows, tokenizing

if TYPE_CHECKING:
    from ....data.report import DataReport
    from ....data.sources import RunRows
    from ....data.sources.mixture import Share

SAMPLE_ROWS = 1_000  # about a second of work
ChooseLength = Callable[[Any, "ModelLimits | None"], int]  # of whole pairs, a ``datasets.Dataset``, and the model


class Rehearsed(NamedTuple):
    """One dataset of a run."""

    report: DataReport  # of the rows that were tokenized
    rows: int | None  # how many rows it has; None for a stream
    refusal: DataError | None  # what the run would end with
    example: Example | None  # the first pair that is kept
    tokens: Any  # the pairs that were tokenized and are kept, a ``datasets.Dataset``

    @property
    def is_whole(self) -> bool:
        """Return whether all rows were tokenized."""
        return self.report.rows == self.rows

    def lines(self) -> list[str]:
        """Return the report in sentences, for a sample with how many rows it was taken from."""
        lines = self.report.lines()
        if self.is_whole:
            return lines
        of = "the first rows of a stream" if self.rows is None else f"a sample of {self.rows:,} rows; --full takes all"
        return [lines[0] + f" ({of})", *lines[1:]]


def rehearse(
    settings: Settings, *, full: bool, rows: RunRows | None = None, choose_length: ChooseLength | None = None
) -> tuple[dict[str, Rehearsed], list[Share]]:
    """Return the datasets of a run by name, the training set first, and the shares of its mixture.

    Args:
        settings: Of the run.
        full: Whether all rows are tokenized; otherwise at most ``SAMPLE_ROWS`` of each dataset, evenly spread.
        rows: What ``read_rows`` returned for these datasets, where they were read before.
        choose_length: Chooses ``max_length``, of which the settings have none, from the whole pairs to train on.

    Returns:
        The datasets, and the shares.

    Raises:
        OddsmithError: What the run would raise before its rows are tokenized, and for a dataset as a whole.
    """
    train, evaluation, shares = rows or read_rows(settings)
    tokenizer = load_its_tokenizer(settings)
    seq2seq = is_encoder_decoder_by_config(settings)
    pair_tokenizer = PairTokenizer.from_settings(tokenizer, settings.orpo, is_encoder_decoder=seq2seq)
    limits = outlined_limits(str(settings.model.model_name_or_path), tokenizer, settings.orpo.padding_value)
    sets = {"train": train}
    if evaluation is not None:
        sets |= evaluation if isinstance(evaluation, Mapping) else {"eval": evaluation}
    found = {}
    for name, rows_of_set in sets.items():
        choose = choose_length if name == "train" else None
        found[name] = _rehearsed(name, rows_of_set, settings, pair_tokenizer, limits, full=full, choose=choose)
    return found, shares


def _rehearsed(
    name: str,
    rows: Any,
    settings: Settings,
    pair_tokenizer: PairTokenizer,
    limits: ModelLimits | None,
    *,
    full: bool,
    choose: ChooseLength | None,
) -> Rehearsed:
    orpo = settings.orpo
    total = None if isinstance(rows, IterableDataset) else len(rows)
    if total is None:
        step = orpo.per_device_train_batch_size * orpo.gradient_accumulation_steps * orpo.world_size
        sample: Any = list(rows.take(orpo.max_steps * step if full and name == "train" else SAMPLE_ROWS))
        numbers: Sequence[int] = range(len(sample))
    else:
        numbers = range(total) if full else _spread(total, SAMPLE_ROWS)
        sample = rows if len(numbers) == total else _selected(rows, numbers)
    is_whole = len(numbers) == total
    tokenize = partial(
        prepare, sample, pair_tokenizer, source=name, num_proc=orpo.dataset_num_proc, min_pairs=0,
        numbers=None if is_whole else numbers,  # with none given, the tokens are kept for the run
    )  # fmt: skip
    refusal: DataError | None = None
    with tokenizing(sample):
        try:
            prepared = tokenize(bad_rows=orpo.bad_rows)
        except RowError as error:
            refusal, prepared = error, tokenize(bad_rows="drop")
    if choose is not None and prepared.report.kept:
        pair_tokenizer.max_length = choose(prepared.dataset, limits)
        prepared = refit(prepared, pair_tokenizer)
    report = prepared.report
    if limits is not None and refusal is None:
        try:
            readable(prepared.dataset, limits, pair_tokenizer.tokenizer, name)
        except RowError as error:
            refusal = error
    if is_whole and refusal is None:
        try:
            require_pairs(report)
        except DataError as error:
            refusal = error
    left_out = set(chain.from_iterable(report.dropped.values()))
    first = next((position for position, number in enumerate(numbers) if number not in left_out), None)
    example = None if first is None else example_of(numbers[first], to_pair(sample[first]), pair_tokenizer)
    return Rehearsed(report, total, refusal, example, prepared.dataset)


def _spread(total: int, most: int) -> Sequence[int]:
    """Return at most ``most`` numbers below ``total``, evenly spread, the first and the last among them."""
    return range(total) if total <= most else [round(n * (total - 1) / (most - 1)) for n in range(most)]


def _selected(rows: Any, numbers: Sequence[int]) -> Any:
    return [rows[number] for number in numbers] if isinstance(rows, list) else rows.select(numbers)
