"""Judge the steps of a run over the real lengths of its pairs: who waits, what is padding, what is computed once.

    tokens in sequences    of all prompts with both answers
    tokens computed        of the rows: packed rows have shared beginnings once, padded ones are filled up
    slowest over mean      the tokens of the slowest process of each step over those of the mean one

Some steps of the first epoch tell, evenly spread over it, and of a few of them every row is laid out as it would be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..batching.forest import ForestLayout, forest_batch
from ..batching.plan import (
    Lengths,
    StepPlan,
    StepShape,
    epoch_order,
    grouped_order,
    num_steps,
    plan_epoch_step,
    slowest_share,
)

PLANNED_STEPS = 50
LAID_OUT_PAIRS = 600  # a tenth of a second
SEQUENTIAL, GROUPED = "sequential", "group_by_length"


@dataclass(frozen=True)
class Efficiency:
    """Figures of the steps of an epoch."""

    steps: int  # of an epoch
    pairs_per_step: int
    micro_batches: float  # of a process in a step, mean
    computed_tokens: float  # of a process in a step, mean
    slowest_tokens: float  # the same of the slowest process
    sequence_tokens: float  # of a process in a step, before anything is shared or filled up
    largest_tokens: int  # of a micro-batch, as it is laid out
    longest_pair: int  # tokens
    seen_keys: float  # of all queries of a process in a step, mean
    entries: float  # predicted tokens of a process in a step, mean
    largest: tuple[int, ...]  # the pairs of the largest micro-batch

    @property
    def slowest_share(self) -> float:
        """Return the tokens of the slowest process over those of the mean one."""
        return self.slowest_tokens / self.computed_tokens if self.computed_tokens else 1.0

    @property
    def computed_share(self) -> float:
        """Return the tokens that are computed over those of the sequences."""
        return self.computed_tokens / self.sequence_tokens if self.sequence_tokens else 1.0


def efficiency_of(
    rows: Any,
    lengths: Lengths,
    shape: StepShape,
    *,
    packed: bool,
    strategy: str,
    grouped_by: np.ndarray,
    seed: int,
    drop_last: bool,
) -> Efficiency:
    """Plan steps as the training does, and lay some of them out.

    Args:
        rows: The tokenized pairs.
        lengths: Their lengths on the path of the run.
        shape: Sizes of a step.
        packed: Whether rows are packed; padded otherwise.
        strategy: ``train_sampling_strategy``.
        grouped_by: Lengths that ``group_by_length`` sorts by.
        seed: Of the order.
        drop_last: Whether a short last step is left out.

    Returns:
        The figures.
    """
    order = epoch_order(len(lengths.tokens), seed=seed, epoch=0, shuffle=strategy != SEQUENTIAL)
    if strategy == GROUPED:
        order = grouped_order(order, grouped_by, shape.pairs, seed=seed, epoch=0)
    steps = num_steps(len(order), shape, drop_last=drop_last)
    chosen = np.unique(np.linspace(0, max(0, steps - 1), min(max(steps, 1), PLANNED_STEPS)).astype(int)).tolist()
    plans = [plan_epoch_step(order, lengths.tokens, step, shape) for step in chosen]
    sequences = np.asarray(rows["chosen_end"]) + np.asarray(rows["rejected_end"])
    laid = _laid_out(rows, plans, packed=packed)
    # Rows that were laid out say by how much fewer, or more, tokens a row has than its pairs by themselves.
    planned = sum(int(lengths.tokens[list(pairs)].sum()) for pairs in laid.pairs) or 1
    scale = laid.tokens / planned
    per_process = float(np.mean([lengths.tokens[list(plan.pairs)].sum() for plan in plans])) / shape.processes * scale
    all_micro_batches = [one for plan in plans for process in plan.micro_batches for one in process]
    largest = max(all_micro_batches, key=lambda one: int(lengths.tokens[list(one.pairs)].sum())).pairs
    return Efficiency(
        steps=steps,
        pairs_per_step=shape.pairs,
        micro_batches=float(np.mean([len(process) for plan in plans for process in plan.micro_batches])),
        computed_tokens=per_process,
        slowest_tokens=per_process * slowest_share(plans, lengths.tokens),
        sequence_tokens=float(np.mean([sequences[list(plan.pairs)].sum() for plan in plans])) / shape.processes,
        largest_tokens=_row_tokens([rows[i] for i in largest], packed=packed),
        longest_pair=int(lengths.tokens.max()),
        seen_keys=laid.seen / laid.tokens * per_process,
        entries=laid.entries / laid.tokens * per_process,
        largest=largest,
    )


@dataclass
class _LaidOut:
    """Sums over the micro-batches that were laid out."""

    pairs: list[tuple[int, ...]]
    tokens: int = 0
    seen: int = 0
    entries: int = 0


def _laid_out(rows: Any, plans: Sequence[StepPlan], *, packed: bool) -> _LaidOut:
    found = _LaidOut([])
    for plan in plans:
        for one in (one for process in plan.micro_batches for one in process if not one.is_filler):
            some = [rows[i] for i in one.pairs]
            found.pairs.append(one.pairs)
            if packed:
                batch = forest_batch(some, "sequence")
                found.tokens += batch["input_ids"].shape[1]
                found.seen += seen_keys(batch["forest"])
                found.entries += len(batch["target_E"])
            else:
                width = max(_widths(some))
                found.tokens += 2 * len(some) * width
                found.seen += len(some) * width * (width + 1)
                found.entries += sum(_widths(some))
            if sum(map(len, found.pairs)) >= LAID_OUT_PAIRS:
                return found
    return found


def _row_tokens(rows: Sequence[Mapping[str, Any]], *, packed: bool) -> int:
    return int(forest_batch(rows, "sequence")["input_ids"].shape[1]) if packed else 2 * len(rows) * max(_widths(rows))


def _widths(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    return [int(row[f"{side}_end"]) + len(row.get("prompt_input_ids") or ()) for row in rows for side in _SIDES]


_SIDES = ("chosen", "rejected")


def seen_keys(layout: ForestLayout) -> int:
    """Return how many keys all queries of a packed row see together."""
    lengths = [(path.end - path.start, path.depth) for path in layout.paths]
    return sum(n * depth + n * (n + 1) // 2 for n, depth in lengths)
