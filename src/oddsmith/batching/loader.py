"""Data loaders that follow a StepPlan: each item is one micro-batch, with the normalisers of its whole step.

Both kinds of dataset give the same batches: a map-style one is planned an epoch at a time; a stream is read by every
process in windows of one step and planned window by window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import IterableDataset as StreamedRows
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from ..errors import ConfigError
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


def lengths_of(
    columns: Mapping[str, Sequence[int]], nll_on: str, is_encoder_decoder: bool = False, shared_prompt: bool = False
) -> Lengths:
    """Lengths of pairs from the columns of a tokenized dataset (or one row of it).

    The first token of a sequence has no prediction, so it is no NLL target; a decoder of an encoder-decoder model
    starts from a token of its own, so there every response token is one.

    Args:
        columns: ``chosen_end``, ``rejected_end``, ``chosen_prompt_tokens``.
        nll_on: ``"sequence"`` or ``"response"``.
        is_encoder_decoder: Whether the rows are those of an encoder-decoder model.
        shared_prompt: Whether the prompt of a pair is computed once for both of its sequences.

    Returns:
        The lengths.
    """
    chosen, rejected = np.asarray(columns["chosen_end"]), np.asarray(columns["rejected_end"])
    prompt = np.asarray(columns["chosen_prompt_tokens"])
    if is_encoder_decoder:
        return Lengths(chosen + rejected, chosen)
    tokens = chosen + rejected - (prompt if shared_prompt else 0)
    return Lengths(tokens, chosen - (1 if nll_on == "sequence" else np.maximum(prompt, 1)))


@dataclass(frozen=True)
class Assignment:
    """Micro-batches to load at once, with the normalisers of the optimizer step they belong to.

    transformers' loop asks for ``gradient_accumulation_steps`` items a step. Where a budget of tokens decides how many
    micro-batches there are, the last item holds them all and the others are empty.
    """

    micro_batches: tuple[MicroBatch, ...]
    num_pairs: int
    num_nll_tokens: int


@dataclass(frozen=True)
class LoadedRows:
    """The tokenized rows of an assignment: ``rows[i]`` are those of its ``micro_batches[i]``."""

    rows: list[list[Mapping[str, Any]]]
    assignment: Assignment


@dataclass
class BatchMaker:
    """Rows of an assignment -> the tensors of its micro-batches: ``{"micro_batches": [...], "loaded": LoadedRows}``.

    Adds to what ``tensors_of`` makes of a micro-batch: ``weight`` float [B] (0 for fillers), ``row`` int [B] (row
    numbers in the source), ``position`` int [B] (in the dataset), ``num_pairs`` and ``num_nll_tokens`` (scalars, of the
    whole step).

    Args:
        tensors_of: Makes the tensors of some rows: ``collate.PaddedTensors`` or ``forest.ForestTensors``.
    """

    tensors_of: Callable[[list[Mapping[str, Any]]], dict[str, Any]]

    def __call__(self, loaded: LoadedRows) -> dict[str, Any]:
        """Collate what ``PlannedDataset`` loads."""
        assignment = loaded.assignment
        micro_batches = zip(loaded.rows, assignment.micro_batches, strict=True)
        return {
            "micro_batches": [self._micro_batch(rows, which, assignment) for rows, which in micro_batches],
            "loaded": loaded,
        }

    def split(
        self, item: Mapping[str, Any], max_tokens: int, measure: Callable[[Mapping[str, Any]], Lengths]
    ) -> dict[str, Any]:
        """The same pairs in smaller micro-batches.

        Args:
            item: What this object made.
            max_tokens: Most tokens of a micro-batch.
            measure: A tokenized row -> its lengths.

        Returns:
            An item of the same pairs.
        """
        loaded = item["loaded"]
        rows, micro_batches = [], []
        for some, which in zip(loaded.rows, loaded.assignment.micro_batches, strict=True):
            tokens = [int(measure(row).tokens) for row in some]
            for part in plan_step(range(len(some)), tokens, StepShape(len(some), 1, 1, max_tokens)).micro_batches[0]:
                rows.append([some[i] for i in part.pairs])
                micro_batches.append(replace(which, pairs=tuple(which.pairs[i] for i in part.pairs)))
        return self(LoadedRows(rows, replace(loaded.assignment, micro_batches=tuple(micro_batches))))

    def _micro_batch(self, rows: list[Mapping[str, Any]], which: MicroBatch, assignment: Assignment) -> dict[str, Any]:
        return dict(self.tensors_of(rows)) | {
            "weight": torch.full((len(rows),), 0.0 if which.is_filler else 1.0),
            "row": torch.tensor([row["row"] for row in rows]),
            "position": torch.tensor(which.pairs),
            "num_pairs": torch.tensor(float(assignment.num_pairs)),
            "num_nll_tokens": torch.tensor(float(assignment.num_nll_tokens)),
        }


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
        if self.steps == 0:
            return 0
        before_last = self.steps - 1
        in_last = min(len(self.lengths.tokens) - before_last * self.shape.pairs, self.shape.pairs)
        return before_last * self.shape.accumulation + micro_batches_per_process(in_last, self.shape)

    def __iter__(self) -> Iterator[Assignment]:
        order = self._order()
        for step in range(self.steps):
            plan = self._plan(order, step)
            items = micro_batches_per_process(len(plan.pairs), self.shape)
            yield from assignments(plan, self.process, self.lengths.nll_tokens, self.shape, items)

    def _order(self) -> np.ndarray:
        return epoch_order(len(self.lengths.tokens), seed=self.seed, epoch=self.epoch, shuffle=self.shuffle)

    def _plan(self, order: np.ndarray, step: int) -> StepPlan:
        return plan_epoch_step(order, self.lengths.tokens, step, self.shape)


class EvaluationAssignments(Sampler):
    """This process's share of an evaluation set."""

    def __init__(self, lengths: Lengths, shape: StepShape, process: int):
        plans = plan_evaluation(lengths.tokens, shape)
        self._assignments = [a for plan in plans for a in assignments(plan, process, lengths.nll_tokens, shape, 1)]

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
            plan = plan_step(range(len(window)), lengths.tokens.tolist(), self.shape, fixed=True)
            accumulation = self.shape.accumulation
            for assignment in assignments(plan, self.process, lengths.nll_tokens, self.shape, accumulation):
                loaded = [[window[i] for i in which.pairs] for which in assignment.micro_batches]
                item = self.batch_maker(LoadedRows(loaded, assignment))
                for batch in item["micro_batches"]:
                    batch["position"] += start
                yield item
            start += len(window)


def assignments(plan: StepPlan, process: int, nll_tokens: np.ndarray, shape: StepShape, items: int) -> list[Assignment]:
    """One process's micro-batches of a step, dealt out to ``items`` assignments, each with the step's normalisers.

    One each, or with a budget of tokens all to the last, so that a step in which memory runs out can be computed anew.
    """
    num_nll_tokens = int(nll_tokens[list(plan.pairs)].sum())
    micro_batches = plan.micro_batches[process]
    dealt = [(one,) for one in micro_batches] if shape.max_tokens is None else [()] * (items - 1) + [micro_batches]
    return [Assignment(some, len(plan.pairs), num_nll_tokens) for some in dealt]


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
        return self._planned(EvaluationAssignments(self._lengths(), self.shape, self.process))

    def _planned(self, sampler: Sampler) -> DataLoader:
        collate: Any = self.batch_maker  # of what ``__getitems__`` returns, which is no list
        return DataLoader(PlannedDataset(self.rows), batch_sampler=sampler, collate_fn=collate, **self.options)

    def _stream(self, drop_last: bool) -> StreamedBatches:
        return StreamedBatches(self.rows, self.shape, self.process, self.batch_maker, self.measure, drop_last)

    def _lengths(self) -> Lengths:
        columns = self.rows.select_columns(["chosen_end", "rejected_end", "chosen_prompt_tokens"])
        return self.measure(columns.with_format("numpy")[:])
