"""Data loaders that follow a StepPlan: their items are micro-batches, with the normalisers of their whole step.

Both kinds of dataset give the same batches: a map-style one is planned an epoch at a time; a stream is read by every
process in windows of one step and planned window by window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from datasets import IterableDataset as StreamedRows
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from ..errors import ConfigError
from ..system.signals import leave_stopping_to_parent
from .items import Assignment, BatchMaker, LoadedRows, assignments
from .plan import (
    Lengths,
    StepShape,
    epoch_order,
    micro_batches_per_process,
    num_steps,
    plan_epoch_step,
    plan_evaluation,
    plan_step,
)


class PlannedDataset(Dataset):
    """A tokenized dataset that is indexed by assignments."""

    def __init__(self, rows: Any):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, assignment: Assignment) -> Any:
        return LoadedRows([[self.rows[i] for i in which.pairs] for which in assignment.micro_batches], assignment)


class TrainingAssignments(Sampler):
    """This process's assignments of an epoch, in order; ``epoch`` is set before each pass."""

    def __init__(self, lengths: Lengths, shape: StepShape, process: int, *, seed: int, shuffle: bool, drop_last: bool):
        self.lengths, self.shape, self.process = lengths, shape, process
        self.seed, self.shuffle = seed, shuffle
        self.steps = num_steps(len(lengths.tokens), shape, drop_last=drop_last)
        self.epoch = 0

    def __len__(self) -> int:
        full_steps, rest = divmod(min(len(self.lengths.tokens), self.steps * self.shape.pairs), self.shape.pairs)
        return full_steps * self.shape.accumulation + micro_batches_per_process(rest, self.shape)

    def __iter__(self) -> Iterator[Assignment]:
        order = epoch_order(len(self.lengths.tokens), seed=self.seed, epoch=self.epoch, shuffle=self.shuffle)
        for step in range(self.steps):
            plan = plan_epoch_step(order, self.lengths.tokens, step, self.shape)
            items = micro_batches_per_process(len(plan.pairs), self.shape)
            yield from assignments(plan, self.process, self.lengths.nll_tokens_of(plan.pairs), self.shape, items)


class StreamedBatches(IterableDataset):
    """A stream of tokenized rows as micro-batches of one process.

    Every process reads the whole stream: it costs each the tokenization of all rows, and buys exact normalisers and
    equal loads without any communication.

    Args:
        rows: Tokenized rows.
        shape: Sizes of a step.
        process: Rank of this process.
        batch_maker: Makes the tensors.
        measure: Columns of tokenized rows -> their lengths.
        drop_last: Leave out a short last step.
    """

    def __init__(
        self,
        rows: Iterable[Mapping[str, Any]],
        shape: StepShape,
        process: int,
        batch_maker: BatchMaker,
        measure: Callable[[Mapping[str, Sequence[int]]], Lengths],
        drop_last: bool,
    ):
        self.rows, self.shape, self.process = rows, shape, process
        self.batch_maker, self.measure, self.drop_last = batch_maker, measure, drop_last
        self.epoch = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if hasattr(self.rows, "set_epoch"):
            self.rows.set_epoch(self.epoch)
        rows = iter(self.rows)
        start = 0
        while window := list(islice(rows, self.shape.pairs)):
            if len(window) < self.shape.pairs and self.drop_last:
                return
            columns = {key: [row[key] for row in window] for key in window[0] if not key.endswith("input_ids")}
            lengths = self.measure(columns)
            plan = plan_step(range(start, start + len(window)), lengths.tokens.tolist(), self.shape, fixed=True)
            num_nll_tokens = int(lengths.nll_tokens.sum())
            for assignment in assignments(plan, self.process, num_nll_tokens, self.shape, self.shape.accumulation):
                loaded = [[window[position - start] for position in which.pairs] for which in assignment.micro_batches]
                yield self.batch_maker(LoadedRows(loaded, assignment))
            start += len(window)


@dataclass
class LoaderFactory:
    """Makes the data loaders of one process over one dataset.

    Args:
        rows: Tokenized rows: a map-style ``datasets.Dataset`` or a stream.
        shape: Sizes of a step.
        process: Rank of this process.
        batch_maker: Makes the tensors.
        measure: Columns of tokenized rows -> their lengths.
        options: Keyword arguments of ``DataLoader`` (workers and the like); a stream is read in the process itself,
            because workers would each read it anew.
    """

    rows: Any
    shape: StepShape
    process: int
    batch_maker: BatchMaker
    measure: Callable[[Mapping[str, Sequence[int]]], Lengths]
    options: dict[str, Any]

    def training(
        self, *, seed: int, shuffle: bool, drop_last: bool
    ) -> tuple[DataLoader, TrainingAssignments | StreamedBatches]:
        """A loader over an epoch, and the object whose ``epoch`` says which.

        Args:
            seed: Draws the order of an epoch, together with its number.
            shuffle: Whether the order is drawn at all.
            drop_last: Leave out a short last step.

        Returns:
            The loader, and the plan or stream behind it.

        Raises:
            ConfigError: Not a single step is left.
        """
        if isinstance(self.rows, StreamedRows | IterableDataset):
            stream = self._stream(drop_last)
            return DataLoader(stream, batch_size=None), stream
        plan = TrainingAssignments(
            self._lengths(), self.shape, self.process, seed=seed, shuffle=shuffle, drop_last=drop_last
        )
        if not len(plan):
            raise ConfigError(
                f"{len(self.rows)} pairs are fewer than one step of {self.shape.pairs}, and dataloader_drop_last leaves"
                " a short step out; make the batch smaller or turn it off"
            )
        return self._planned(plan), plan

    def evaluation(self) -> DataLoader:
        """A loader over every pair once."""
        if isinstance(self.rows, StreamedRows | IterableDataset):
            return DataLoader(self._stream(drop_last=False), batch_size=None)
        lengths = self._lengths()
        plans = plan_evaluation(lengths.tokens, self.shape)
        return self._planned(
            [
                item
                for plan in plans
                for item in assignments(plan, self.process, lengths.nll_tokens_of(plan.pairs), self.shape, items=1)
            ]
        )

    def _planned(self, sampler: Any) -> DataLoader:
        collate: Any = self.batch_maker  # of what ``__getitems__`` returns, which is no list
        return DataLoader(
            PlannedDataset(self.rows),
            batch_sampler=sampler,
            collate_fn=collate,
            worker_init_fn=leave_stopping_to_parent,
            **self.options,
        )

    def _stream(self, drop_last: bool) -> StreamedBatches:
        return StreamedBatches(self.rows, self.shape, self.process, self.batch_maker, self.measure, drop_last)

    def _lengths(self) -> Lengths:
        columns = self.rows.select_columns(["chosen_end", "rejected_end", "chosen_prompt_tokens"])
        return self.measure(columns.with_format("numpy")[:])
