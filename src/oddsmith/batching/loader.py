"""Data loaders that follow a StepPlan: each item is one micro-batch, with the normalisers of its whole step.

Both kinds of dataset give the same batches: a map-style one is planned an epoch at a time; a stream is read by every
process in windows of one step and planned window by window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import IterableDataset as StreamedRows
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from ..errors import ConfigError
from .collate import trl_features
from .plan import (
    MicroBatch,
    StepPlan,
    StepShape,
    epoch_order,
    micro_batches_per_process,
    num_steps,
    plan_epoch_step,
    plan_evaluation,
    plan_step,
)


class Lengths(NamedTuple):
    """What a plan needs to know of pairs: tokens to compute, and NLL target tokens; int arrays [num_pairs]."""

    tokens: np.ndarray
    nll_tokens: np.ndarray


def lengths_of(columns: Mapping[str, Sequence[int]], nll_on: str, is_encoder_decoder: bool = False) -> Lengths:
    """Lengths of pairs from the columns of a tokenized dataset (or one row of it).

    The first token of a sequence has no prediction, so it is no NLL target; a decoder of an encoder-decoder model
    starts from a token of its own, so there every response token is one.
    """
    chosen, rejected = np.asarray(columns["chosen_end"]), np.asarray(columns["rejected_end"])
    prompt = np.asarray(columns["chosen_prompt_tokens"])
    if is_encoder_decoder:
        return Lengths(chosen + rejected, chosen)
    return Lengths(chosen + rejected, chosen - (1 if nll_on == "sequence" else np.maximum(prompt, 1)))


@dataclass(frozen=True)
class Assignment:
    """One micro-batch to load, with the normalisers of the optimizer step it belongs to."""

    micro_batch: MicroBatch
    num_pairs: int
    num_nll_tokens: int


@dataclass
class BatchMaker:
    """Rows of a micro-batch -> its tensors.

    Adds to what the collator makes: ``weight`` float [B] (0 for fillers), ``row`` int [B] (row numbers in the source),
    ``position`` int [B] (in the dataset), ``num_pairs`` and ``num_nll_tokens`` (scalars, of the whole step).

    Args:
        collator: ``PairCollator`` or any collator written for TRL's columns.
        is_encoder_decoder: Whether the rows are those of an encoder-decoder model.
    """

    collator: Callable[[list[dict[str, Any]]], dict[str, Any]]
    is_encoder_decoder: bool = False

    def __call__(self, loaded: Any) -> dict[str, Any]:
        """Collate what ``PlannedDataset`` loads: the rows of an assignment, and the assignment."""
        rows, assignment = loaded
        batch = dict(self.collator([trl_features(row, self.is_encoder_decoder) for row in rows]))
        weight = 0.0 if assignment.micro_batch.is_filler else 1.0
        batch["weight"] = torch.full((len(rows),), weight)
        batch["row"] = torch.tensor([row["row"] for row in rows])
        batch["position"] = torch.tensor(assignment.micro_batch.pairs)
        batch["num_pairs"] = torch.tensor(float(assignment.num_pairs))
        batch["num_nll_tokens"] = torch.tensor(float(assignment.num_nll_tokens))
        return batch


class PlannedDataset(Dataset):
    """A tokenized dataset that is indexed by assignments."""

    def __init__(self, rows: Any):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, assignment: Assignment) -> tuple[list[Mapping[str, Any]], Assignment]:
        return [self.rows[position] for position in assignment.micro_batch.pairs], assignment


class TrainingAssignments(Sampler):
    """This process's assignments of an epoch, in order; ``epoch`` is set before each pass."""

    def __init__(self, lengths: Lengths, shape: StepShape, process: int, *, seed: int, shuffle: bool, drop_last: bool):
        self.lengths, self.shape, self.process = lengths, shape, process
        self.seed, self.shuffle = seed, shuffle
        self.steps = num_steps(len(lengths.tokens), shape, drop_last=drop_last)
        self.epoch = 0

    def __len__(self) -> int:
        if self.steps == 0:
            return 0
        before_last = self.steps - 1
        in_last = min(len(self.lengths.tokens) - before_last * self.shape.pairs, self.shape.pairs)
        return before_last * self.shape.accumulation + micro_batches_per_process(in_last, self.shape)

    def __iter__(self) -> Iterator[Assignment]:
        order = self._order()
        for step in range(self.steps):
            yield from assignments(self._plan(order, step), self.process, self.lengths.nll_tokens)

    def _order(self) -> np.ndarray:
        return epoch_order(len(self.lengths.tokens), seed=self.seed, epoch=self.epoch, shuffle=self.shuffle)

    def _plan(self, order: np.ndarray, step: int) -> StepPlan:
        return plan_epoch_step(order, self.lengths.tokens, step, self.shape)


class EvaluationAssignments(Sampler):
    """This process's share of an evaluation set."""

    def __init__(self, lengths: Lengths, micro_batch_size: int, processes: int, process: int):
        plans = plan_evaluation(lengths.tokens, micro_batch_size, processes)
        self._assignments = [a for plan in plans for a in assignments(plan, process, lengths.nll_tokens)]

    def __len__(self) -> int:
        return len(self._assignments)

    def __iter__(self) -> Iterator[Assignment]:
        return iter(self._assignments)


class StreamedBatches(IterableDataset):
    """A stream of tokenized rows as micro-batches of one process.

    Every process reads the whole stream: it costs each the tokenization of all rows, and buys exact normalisers and
    equal loads without any communication.

    Args:
        rows: Tokenized rows.
        shape: Sizes of a step.
        process: Rank of this process.
        batch_maker: Makes the tensors.
        nll_on: ``"sequence"`` or ``"response"``.
        drop_last: Leave out a short last step.
    """

    def __init__(
        self,
        rows: Iterable[Mapping[str, Any]],
        shape: StepShape,
        process: int,
        batch_maker: BatchMaker,
        nll_on: str,
        drop_last: bool,
    ):
        self.rows, self.shape, self.process = rows, shape, process
        self.batch_maker, self.nll_on, self.drop_last = batch_maker, nll_on, drop_last
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
            lengths = lengths_of(columns, self.nll_on, self.batch_maker.is_encoder_decoder)
            plan = plan_step(range(len(window)), lengths.tokens.tolist(), self.shape, fixed=True)
            for assignment in assignments(plan, self.process, lengths.nll_tokens):
                batch = self.batch_maker(([window[i] for i in assignment.micro_batch.pairs], assignment))
                batch["position"] += start
                yield batch
            start += len(window)


def assignments(plan: StepPlan, process: int, nll_tokens: np.ndarray) -> list[Assignment]:
    """One process's micro-batches of a step, each with the step's normalisers."""
    num_nll_tokens = int(nll_tokens[list(plan.pairs)].sum())
    return [Assignment(batch, len(plan.pairs), num_nll_tokens) for batch in plan.micro_batches[process]]


@dataclass
class LoaderFactory:
    """Makes the data loaders of one process over one dataset.

    Args:
        rows: Tokenized rows: a map-style ``datasets.Dataset`` or a stream.
        shape: Sizes of a step.
        process: Rank of this process.
        batch_maker: Makes the tensors.
        nll_on: ``"sequence"`` or ``"response"``.
        options: Keyword arguments of ``DataLoader`` (workers and the like); a stream is read in the process itself,
            because workers would each read it anew.
    """

    rows: Any
    shape: StepShape
    process: int
    batch_maker: BatchMaker
    nll_on: str
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
        shape = self.shape
        return self._planned(
            EvaluationAssignments(self._lengths(), shape.micro_batch_size, shape.processes, self.process)
        )

    def _planned(self, sampler: Sampler) -> DataLoader:
        return DataLoader(PlannedDataset(self.rows), batch_sampler=sampler, collate_fn=self.batch_maker, **self.options)

    def _stream(self, drop_last: bool) -> StreamedBatches:
        return StreamedBatches(self.rows, self.shape, self.process, self.batch_maker, self.nll_on, drop_last)

    def _lengths(self) -> Lengths:
        columns = self.rows.select_columns(["chosen_end", "rejected_end", "chosen_prompt_tokens"])
        return lengths_of(columns.with_format("numpy")[:], self.nll_on, self.batch_maker.is_encoder_decoder)
