"""What a data loader hands over: micro-batches as tensors, each with the normalisers of its whole optimizer step.

transformers' loop asks for ``gradient_accumulation_steps`` items a step. As the batch sizes say, an item is one
micro-batch. Where a budget of tokens decides how many micro-batches there are, the last item of a step holds them all
and the others are empty, so that a step in which memory runs out can be computed anew.

Shape suffixes: B pairs of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from .plan import Lengths, MicroBatch, StepPlan, StepShape, plan_step


@dataclass(frozen=True)
class Assignment:
    """Micro-batches to load at once, with the normalisers of the optimizer step they belong to."""

    micro_batches: tuple[MicroBatch, ...]
    num_pairs: int
    num_nll_tokens: int


@dataclass(frozen=True)
class LoadedRows:
    """The tokenized rows of an assignment: ``rows[i]`` are those of its ``micro_batches[i]``."""

    rows: Sequence[Sequence[Mapping[str, Any]]]
    assignment: Assignment


def assignments(plan: StepPlan, process: int, num_nll_tokens: int, shape: StepShape, items: int) -> list[Assignment]:
    """One process's micro-batches of a step, dealt out to ``items`` items.

    Args:
        plan: The step.
        process: Rank of the process.
        num_nll_tokens: NLL target tokens of all pairs of the step.
        shape: Sizes; with a budget of tokens the last item gets all micro-batches, without one each gets one.
        items: How many.

    Returns:
        The assignments, in order.
    """
    micro_batches = plan.micro_batches[process]
    dealt = [(one,) for one in micro_batches] if shape.max_tokens is None else [()] * (items - 1) + [micro_batches]
    return [Assignment(some, len(plan.pairs), num_nll_tokens) for some in dealt]


@dataclass
class BatchMaker:
    """Rows of an assignment -> tensors.

    Adds to what ``tensors_of`` makes of a micro-batch: ``weight`` float [B] (0 for fillers), ``row`` int [B] (row
    numbers in the source), ``position`` int [B] (in the dataset), ``num_pairs`` and ``num_nll_tokens`` (scalars, of the
    whole step).

    Args:
        tensors_of: Makes the tensors of some rows: ``collate.PaddedTensors`` or ``forest.ForestTensors``.
        one_each: Every item is one micro-batch, and is handed over as such. Otherwise an item is
            ``{"micro_batches": [...], "loaded": LoadedRows}``.
    """

    tensors_of: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]
    one_each: bool = False

    def __call__(self, loaded: LoadedRows) -> dict[str, Any]:
        """The item of some rows."""
        assignment = loaded.assignment
        pairs_of_rows = zip(loaded.rows, assignment.micro_batches, strict=True)
        micro_batches = [self._micro_batch(rows, which, assignment) for rows, which in pairs_of_rows]
        return micro_batches[0] if self.one_each else {"micro_batches": micro_batches, "loaded": loaded}

    def divided(
        self, loaded: LoadedRows, max_tokens: int, measure: Callable[[Mapping[str, Any]], Lengths]
    ) -> dict[str, Any]:
        """The pairs of an item in smaller micro-batches. They are all of a step, of its only process.

        Args:
            loaded: The item's rows.
            max_tokens: Most tokens of a micro-batch.
            measure: A tokenized row -> its lengths.

        Returns:
            An item of the same pairs.
        """
        rows = [row for some in loaded.rows for row in some]
        positions = [position for which in loaded.assignment.micro_batches for position in which.pairs]
        tokens = [int(measure(row).tokens) for row in rows]
        (parts,) = plan_step(range(len(rows)), tokens, StepShape(len(rows), 1, 1, max_tokens)).micro_batches
        micro_batches = tuple(MicroBatch(tuple(positions[i] for i in part.pairs)) for part in parts)
        return self(
            LoadedRows(
                [[rows[i] for i in part.pairs] for part in parts],
                replace(loaded.assignment, micro_batches=micro_batches),
            )
        )

    def _micro_batch(
        self, rows: Sequence[Mapping[str, Any]], which: MicroBatch, assignment: Assignment
    ) -> dict[str, Any]:
        return dict(self.tensors_of(rows)) | {
            "weight": torch.full((len(rows),), 0.0 if which.is_filler else 1.0),
            "row": torch.tensor([row["row"] for row in rows]),
            "position": torch.tensor(which.pairs),
            "num_pairs": torch.tensor(float(assignment.num_pairs)),
            "num_nll_tokens": torch.tensor(float(assignment.num_nll_tokens)),
        }
