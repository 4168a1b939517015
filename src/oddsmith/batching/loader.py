"""Load micro-batches by a ``StepPlan``, with the normalisers of the whole optimizer step.

    plan -> Assignment (positions) -> LoadedRows (tokenized rows) -> BatchMaker -> item (tensors)

transformers' loop asks for ``gradient_accumulation_steps`` items a step, and an item is one micro-batch. With a token
budget the number of micro-batches varies, so the last item of a step has all of them and the others are empty; a step
that runs out of memory can then be computed again.

Both kinds of dataset give the same batches: a map-style dataset is planned an epoch at a time; every process reads a
stream in windows of one step, and plans each window.

Shape suffixes: B pairs of a micro-batch.
"""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from datasets import IterableDataset as StreamedRows
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, get_worker_info

from ..errors import ConfigError, WorkerError
from ..system.signals import leave_stopping_to_parent
from ..system.words import counted
from .item import LoaderItem, Parcel
from .plan import (
    Lengths,
    MicroBatch,
    StepPlan,
    StepShape,
    epoch_order,
    grouped_order,
    lengths_of,
    micro_batches_per_process,
    num_steps,
    plan_epoch_step,
    plan_evaluation,
    plan_step,
    slowest_share,
)

logger = logging.getLogger(__name__)

MEASURED_STEPS = 50  # of an epoch, spread over it, tell how long processes wait


def no_whole_step(pairs: int, step: int) -> ConfigError:
    """Return the error for pairs that are fewer than a step, where short steps are left out."""
    return ConfigError(
        f"{counted(pairs, 'pair')} {'is' if pairs == 1 else 'are'} fewer than one step of {step}, and"
        " dataloader_drop_last leaves a short step out; make the batch smaller or turn it off"
    )


@contextmanager
def clear_worker_errors() -> Iterator[None]:
    """Raise ``WorkerError`` where PyTorch found that a worker of a data loader has ended, and say what to do."""
    try:
        yield
    except RuntimeError as error:
        if not (found := re.match(r"DataLoader worker \(pid[^)]*\) [^.]*", str(error))):
            raise
        raise WorkerError(
            f"{found[0].replace(' is killed', ' was killed')}; a system kills processes where memory runs out: lower"
            " dataloader_num_workers and dataloader_prefetch_factor, or set the first to 0, where a data_collator that"
            " fails shows its own error"
        ) from error


@dataclass(frozen=True)
class Assignment:
    """Micro-batches to load at once, with the normalisers of the optimizer step they belong to."""

    micro_batches: tuple[MicroBatch, ...]
    num_pairs: int
    num_nll_tokens: int


@dataclass(frozen=True)
class LoadedRows:
    """The tokenized rows of an assignment: ``rows[i]`` are those of its ``micro_batches[i]``.

    A worker sends no rows: all tokens once more, and what the user's rows hold beside them. They can be loaded again.
    """

    rows: Sequence[Sequence[Mapping[str, Any]]]
    assignment: Assignment


def assignments(plan: StepPlan, process: int, num_nll_tokens: int, shape: StepShape, items: int) -> list[Assignment]:
    """Distribute one process's micro-batches of a step over ``items`` items, in order.

    With a token budget the last item gets all micro-batches, without one each item gets one. ``num_nll_tokens`` are the
    NLL target tokens of all pairs of the step.
    """
    micro_batches = plan.micro_batches[process]
    dealt = [(one,) for one in micro_batches] if shape.max_tokens is None else [()] * (items - 1) + [micro_batches]
    return [Assignment(some, len(plan.pairs), num_nll_tokens) for some in dealt]


@dataclass
class BatchMaker:
    """Turn the rows of an assignment into tensors.

    Adds to what ``tensors_of`` makes of a micro-batch: ``weight`` float [B] (0 for fillers), ``row`` int [B] (row
    numbers in the source), ``position`` int [B] (in the dataset), ``num_pairs`` and ``num_nll_tokens`` (scalars, of the
    whole step).
    """

    tensors_of: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]  # ``PaddedTensors`` or ``forest_batch``
    # Whether every item is the tensors of one micro-batch; otherwise it is ``{"micro_batches": [...], "loaded":
    # LoadedRows}``
    one_each: bool = False

    def __call__(self, loaded: LoadedRows) -> LoaderItem:
        """Return the item of some rows."""
        step = loaded.assignment
        micro_batches = [
            dict(self.tensors_of(rows))
            | {
                "weight": torch.full((len(rows),), 0.0 if which.is_filler else 1.0),
                "row": torch.tensor([row["row"] for row in rows]),
                "position": torch.tensor(which.pairs),
                "num_pairs": torch.tensor(float(step.num_pairs)),
                "num_nll_tokens": torch.tensor(float(step.num_nll_tokens)),
            }
            for rows, which in zip(loaded.rows, step.micro_batches, strict=True)
        ]
        if self.one_each:
            return LoaderItem(micro_batches[0])
        return LoaderItem(micro_batches=micro_batches, loaded=loaded)

    def collate(self, loaded: LoadedRows) -> LoaderItem | Parcel:
        """Return the item of some rows to a data loader, from a worker as a parcel that becomes the item."""
        if get_worker_info() is None:
            return self(loaded)
        try:
            item = self(loaded)
            if "loaded" in item:
                item["loaded"] = LoadedRows((), loaded.assignment)
            return Parcel(item)
        except Exception as error:
            if _is_importable(type(error)):
                raise
            raise RuntimeError(f"{type(error).__name__}: {error}") from error

    def divided(
        self, loaded: LoadedRows, max_tokens: int, measure: Callable[[Mapping[str, Any]], Lengths]
    ) -> LoaderItem:
        """Return an item of the same pairs in micro-batches of at most ``max_tokens`` tokens.

        The rows must be all that this process has of a step; ``measure`` returns the lengths of a tokenized row. A pair
        that only fills the step up stays alone, or is left out beside others.
        """
        given = list(zip(loaded.rows, loaded.assignment.micro_batches, strict=True))
        counted = [(rows, which) for rows, which in given if not which.is_filler]
        if not counted:
            return self(loaded)
        rows = [row for some, _ in counted for row in some]
        positions = [position for _, which in counted for position in which.pairs]
        tokens = [int(measure(row).tokens) for row in rows]
        (parts,) = plan_step(range(len(rows)), tokens, StepShape(len(rows), 1, 1, max_tokens)).micro_batches
        micro_batches = tuple(MicroBatch(tuple(positions[i] for i in part.pairs)) for part in parts)
        assignment = replace(loaded.assignment, micro_batches=micro_batches)
        return self(LoadedRows([[rows[i] for i in part.pairs] for part in parts], assignment))


def _is_importable(error: type[Exception]) -> bool:
    """Return whether the main process can find an error's class; the error would never arrive there otherwise."""
    try:
        pickle.dumps(error)
    except (pickle.PicklingError, AttributeError):
        return False
    return True


class PlannedDataset(Dataset):
    """A tokenized dataset that is indexed by assignments."""

    def __init__(self, rows: Any):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, assignment: Assignment) -> LoadedRows:
        return LoadedRows([[self.rows[i] for i in which.pairs] for which in assignment.micro_batches], assignment)


class TrainingAssignments(Sampler):
    """This process's assignments of an epoch, in order; set ``epoch`` before each one.

    ``rows`` are the tokenized dataset, to load rows again that a worker has loaded. With ``grouped_by``, lengths of all
    pairs, each step has pairs of similar length.
    """

    def __init__(
        self,
        lengths: Lengths,
        shape: StepShape,
        process: int,
        *,
        seed: int,
        shuffle: bool,
        drop_last: bool,
        rows: Any = None,
        grouped_by: np.ndarray | None = None,
    ):
        self.lengths, self.shape, self.process = lengths, shape, process
        self.grouped_by = grouped_by
        self.seed, self.shuffle, self._rows = seed, shuffle, rows
        self.steps = num_steps(len(lengths.tokens), shape, drop_last=drop_last)
        self.epoch = 0

    def __len__(self) -> int:
        full_steps, rest = divmod(min(len(self.lengths.tokens), self.steps * self.shape.pairs), self.shape.pairs)
        return full_steps * self.shape.accumulation + micro_batches_per_process(rest, self.shape)

    def slowest_share(self) -> float:
        """Return how many times the mean tokens the slowest process has in this epoch, judged by some of its steps."""
        order = self._order()
        steps = np.unique(np.linspace(0, self.steps - 1, min(self.steps, MEASURED_STEPS)).astype(int)).tolist()
        plans = (plan_epoch_step(order, self.lengths.tokens, step, self.shape) for step in steps)
        return slowest_share(plans, self.lengths.tokens)

    def _order(self) -> np.ndarray:
        order = epoch_order(len(self.lengths.tokens), seed=self.seed, epoch=self.epoch, shuffle=self.shuffle)
        if self.grouped_by is None:
            return order
        return grouped_order(order, self.grouped_by, self.shape.pairs, seed=self.seed, epoch=self.epoch)

    def __iter__(self) -> Iterator[Assignment]:
        order = self._order()
        for step in range(self.steps):
            plan = plan_epoch_step(order, self.lengths.tokens, step, self.shape)
            items = micro_batches_per_process(len(plan.pairs), self.shape)
            yield from assignments(plan, self.process, self.lengths.nll_tokens_of(plan.pairs), self.shape, items)

    def with_rows(self, loaded: LoadedRows) -> LoadedRows:
        """Return what was loaded with its rows, which a worker does not send."""
        return loaded if loaded.rows else PlannedDataset(self._rows).__getitems__(loaded.assignment)


class StreamedBatches(IterableDataset):
    """The items of one process from a stream of tokenized rows; set ``epoch`` before each one.

    Every process reads the whole stream and tokenizes all rows, so that normalisers are exact and loads are equal
    without any communication.
    """

    def __init__(self, loaders: LoaderFactory, drop_last: bool):
        self.loaders, self.drop_last = loaders, drop_last
        self.rows, self.shape = loaders.rows, loaders.shape
        self.epoch = 0

    def __iter__(self) -> Iterator[LoaderItem]:
        if hasattr(self.rows, "set_epoch"):
            self.rows.set_epoch(self.epoch)
        rows = iter(self.rows)
        start = 0
        while window := list(islice(rows, self.shape.pairs)):
            shape = self.shape  # whose budget may have been halved since the last step
            if len(window) < shape.pairs and self.drop_last:
                return
            columns = {key: [row[key] for row in window] for key in window[0] if not key.endswith("input_ids")}
            lengths = self.loaders.measure(columns)
            plan = plan_step(range(start, start + len(window)), lengths.tokens.tolist(), shape, fixed=True)
            num_nll_tokens = int(lengths.nll_tokens.sum())
            for assignment in assignments(plan, self.loaders.process, num_nll_tokens, shape, shape.accumulation):
                loaded = [[window[position - start] for position in which.pairs] for which in assignment.micro_batches]
                yield self.loaders.batch_maker(LoadedRows(loaded, assignment))
            start += len(window)

    def slowest_share(self) -> None:
        """Return nothing: of a stream no step is known before it is read."""

    def with_rows(self, loaded: LoadedRows) -> LoadedRows:
        """Return what was loaded: a stream is read without workers."""
        return loaded


@dataclass
class LoaderFactory:
    """Make the data loaders of one process over one dataset."""

    rows: Any  # tokenized rows: a map-style ``datasets.Dataset`` or a stream
    shape: StepShape
    process: int  # rank of this process
    batch_maker: BatchMaker
    measure: Callable[[Mapping[str, Sequence[int]]], Lengths]  # columns of tokenized rows -> their lengths
    # Keyword arguments of ``DataLoader`` (workers and the like). A stream is read in this process, because every worker
    # would read all of it; its items are pinned all the same.
    options: dict[str, Any]

    def training(
        self, *, seed: int, shuffle: bool, drop_last: bool, group_by_length: bool = False
    ) -> tuple[DataLoader, TrainingAssignments | StreamedBatches]:
        """Return a loader for training, and its sampler or stream; set the attribute ``epoch`` of that before an epoch.

        The order is drawn from the seed and the number of the epoch; ``group_by_length`` puts pairs of similar length
        into a step, unless they are a stream. Where ``drop_last`` leaves no step at all, raise ``ConfigError``.
        """
        if self._is_stream():
            if group_by_length and self.process == 0:
                logger.warning("train_sampling_strategy: group_by_length has no effect on a stream, taken as it comes")
            stream = StreamedBatches(self, drop_last)
            return self._streamed(stream), stream
        columns = self._columns()
        sampler = TrainingAssignments(
            self.measure(columns),
            self.shape,
            self.process,
            seed=seed,
            shuffle=shuffle,
            drop_last=drop_last,
            rows=self.rows,
            # As if the prompt were computed once, on every path: the path has no influence on the order.
            grouped_by=lengths_of(columns, "sequence", shared_prompt_from=0).tokens if group_by_length else None,
        )
        if not len(sampler):
            raise no_whole_step(len(self.rows), self.shape.pairs)
        return self._planned(sampler), sampler

    def evaluation(self) -> DataLoader:
        """Return a loader that yields every pair once."""
        if self._is_stream():
            return self._streamed(StreamedBatches(self, drop_last=False))
        lengths = self.measure(self._columns())
        items: list[Assignment] = []
        for plan in plan_evaluation(lengths.tokens, self.shape):
            items += assignments(plan, self.process, lengths.nll_tokens_of(plan.pairs), self.shape, items=1)
        return self._planned(items)

    def _is_stream(self) -> bool:
        return isinstance(self.rows, StreamedRows | IterableDataset)

    def _streamed(self, stream: StreamedBatches) -> DataLoader:
        return DataLoader(stream, batch_size=None, pin_memory=self.options.get("pin_memory", False))

    def _planned(self, sampler: Iterable[Assignment]) -> DataLoader:
        collate: Any = self.batch_maker.collate  # of what ``__getitems__`` returns, which is not a list
        return DataLoader(
            PlannedDataset(self.rows),
            batch_sampler=sampler,  # type: ignore[arg-type]
            collate_fn=collate,
            worker_init_fn=leave_stopping_to_parent,
            **self.options,
        )

    def _columns(self) -> dict[str, Any]:
        """Return the columns of the tokenized rows that lengths are computed from; gaps only where there are any."""
        names = ("chosen_end", "rejected_end", "chosen_prompt_tokens")
        table = self.rows.select_columns([*names, *({"chosen_gaps"} & set(self.rows.column_names))])
        table = table.with_format("arrow")[:]
        columns: dict[str, Any] = {name: np.asarray(table[name]) for name in names}
        if "chosen_gaps" in self.rows.column_names and pc.sum(pc.list_value_length(table["chosen_gaps"])).as_py():
            columns["chosen_gaps"] = table["chosen_gaps"].to_pylist()
        return columns
