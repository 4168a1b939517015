"""StepPlan: which pairs form an optimizer step, and which process computes which of them in which micro-batch.

A pure function of lengths, seed, epoch and sizes. Every process computes the same plan: nothing is communicated, all
processes have about the same amount of work, a run resumes at step k without reading the steps before it, and the
normalisers of the loss are available before the first token is computed.

    step of N = 6 pairs (tokens 9 7 5 4 2 1), 2 processes x 1 micro-batch x 3 pairs

        process 0: 9 4 1  = 14 tokens
        process 1: 7 5 2  = 14 tokens

With a token budget there are instead as few micro-batches as stay within the budget.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from math import ceil
from typing import Any, NamedTuple

import numpy as np

GROUPED_STEPS = 50  # that share the pairs of a window, as in transformers' ``LengthGroupedSampler``


@dataclass(frozen=True)
class StepShape:
    """The size of a full optimizer step in pairs, and its split."""

    micro_batch_size: int  # pairs of a micro-batch (``per_device_train_batch_size``)
    accumulation: int  # micro-batches per process and step (``gradient_accumulation_steps``)
    processes: int  # world size
    # Token budget of a micro-batch. It then determines the number of micro-batches, and ``micro_batch_size`` and
    # ``accumulation`` only the number of pairs of a step. A longer pair forms a micro-batch alone.
    max_tokens: int | None = None

    @property
    def pairs(self) -> int:
        """Return the number of pairs of a full step."""
        return self.micro_batch_size * self.accumulation * self.processes


@dataclass(frozen=True)
class MicroBatch:
    """Pairs that one process computes at once."""

    pairs: tuple[int, ...]  # their positions in the dataset
    # The pairs have weight 0. They are computed by a process that has no others in a short last step, so that the
    # collective operations of all processes match.
    is_filler: bool = False


@dataclass(frozen=True)
class StepPlan:
    """One optimizer step."""

    pairs: tuple[int, ...]  # positions in the dataset of all pairs of the step
    micro_batches: tuple[tuple[MicroBatch, ...], ...]  # of each process; all processes have equally many


class Lengths(NamedTuple):
    """Lengths of pairs: tokens to compute, and NLL target tokens; int arrays [num_pairs]."""

    tokens: np.ndarray
    nll_tokens: np.ndarray

    def nll_tokens_of(self, pairs: Sequence[int]) -> int:
        """Return the sum of the NLL target tokens of some pairs."""
        return int(self.nll_tokens[list(pairs)].sum())


def lengths_of(
    columns: Mapping[str, Sequence[int]],
    nll_on: str,
    is_encoder_decoder: bool = False,
    shared_prompt_from: int | None = None,
) -> Lengths:
    """Return the lengths of pairs from the columns of a tokenized dataset (or one row of it).

    ``columns`` are ``chosen_end``, ``rejected_end``, ``chosen_prompt_tokens`` and, where there are gaps between
    targets, ``chosen_gaps``; ``nll_on`` is ``"sequence"`` or ``"response"``. The prompt of a pair is computed, and
    counted, once if it has ``shared_prompt_from`` tokens; with ``None`` it never is. The first token of a sequence has
    no prediction, so it is no NLL target, and gaps hold none. In an encoder-decoder model the decoder begins with a
    start token, so that every response token is a target.
    """
    chosen, rejected = np.asarray(columns["chosen_end"]), np.asarray(columns["rejected_end"])
    prompt = np.asarray(columns["chosen_prompt_tokens"])
    if is_encoder_decoder:
        return Lengths(chosen + rejected, chosen)
    is_shared = np.zeros(prompt.shape, bool) if shared_prompt_from is None else prompt >= shared_prompt_from
    tokens = chosen + rejected - prompt * is_shared
    response = response_tokens(columns, "chosen")
    return Lengths(tokens, response + np.maximum(prompt, 1) - 1 if nll_on == "sequence" else response)


def response_tokens(columns: Mapping[str, Any], side: str) -> np.ndarray:
    """Return the number of targets of each response, without gaps between the assistant's turns: int [num_pairs].

    ``columns`` are ``SIDE_end``, ``SIDE_prompt_tokens`` and, where there are gaps, ``SIDE_gaps``, of a tokenized
    dataset or of one row of it.
    """
    end, prompt = np.asarray(columns[f"{side}_end"]), np.asarray(columns[f"{side}_prompt_tokens"])
    gaps = columns.get(f"{side}_gaps", ())
    if end.ndim == 0:
        in_gaps: Any = sum(gaps[1::2]) - sum(gaps[::2])
    else:
        in_gaps = np.array([sum(places[1::2]) - sum(places[::2]) for places in gaps] or 0)
    return end - np.maximum(prompt, 1) - in_gaps


def epoch_order(num_pairs: int, *, seed: int, epoch: int, shuffle: bool = True) -> np.ndarray:
    """Return the order of the pairs in an epoch: a permutation drawn from (seed, epoch), int64 [num_pairs]."""
    if not shuffle:
        return np.arange(num_pairs)
    return np.random.default_rng([seed, epoch]).permutation(num_pairs)


def grouped_order(order: np.ndarray, lengths: np.ndarray, pairs_per_step: int, *, seed: int, epoch: int) -> np.ndarray:
    """Return an order of which each step has pairs of similar length, for ``group_by_length``: int64 [num_pairs].

    Every window of ``GROUPED_STEPS`` steps of the random ``order`` is sorted by length and cut into steps, and these
    are put into a random order, drawn from (seed, epoch). The last step stays as it is if it is a short one. The number
    of processes has no influence.

        window        5 9 2 7 8 1      steps   9 8   7 5   2 1      in random order   7 5   2 1   9 8
    """
    draw = np.random.default_rng([seed, epoch, len(order)])
    full = len(order) // pairs_per_step * pairs_per_step
    grouped = []
    for start in range(0, full, GROUPED_STEPS * pairs_per_step):
        window = order[start : min(start + GROUPED_STEPS * pairs_per_step, full)]
        by_length = window[np.argsort(-lengths[window], kind="stable")]
        grouped.append(draw.permutation(by_length.reshape(-1, pairs_per_step)).ravel())
    return np.concatenate([*grouped, order[full:]])


def slowest_share(plans: Iterable[StepPlan], tokens: np.ndarray) -> float:
    """Return the tokens of the slowest process of each step over those of the mean process, 1.0 if none waits.

    ``tokens`` are those of each pair of the dataset, by position. Sums over all steps are divided.
    """
    slowest = everything = 0.0
    for plan in plans:
        loads = [sum(int(tokens[list(some.pairs)].sum()) for some in process) for process in plan.micro_batches]
        slowest += max(loads)
        everything += sum(loads) / len(loads)
    return slowest / everything if everything else 1.0


def num_steps(num_pairs: int, shape: StepShape, *, drop_last: bool = False) -> int:
    """Return the number of optimizer steps of an epoch; the last one may be short unless ``drop_last``."""
    return num_pairs // shape.pairs if drop_last else ceil(num_pairs / shape.pairs)


def micro_batches_per_process(num_pairs: int, shape: StepShape) -> int:
    """Return how many micro-batches each process needs for a step of ``num_pairs`` pairs."""
    return ceil(num_pairs / (shape.processes * shape.micro_batch_size))


def plan_step(pairs: Sequence[int], tokens: Sequence[int], shape: StepShape, *, fixed: bool = False) -> StepPlan:
    """Split the pairs of one step over processes and micro-batches so that all have about the same number of tokens.

    Longest pair first, each into the micro-batch with the fewest tokens that has room (longest-processing-time-first
    scheduling with a capacity). No micro-batch has more tokens than the mean plus the longest pair of the step.

    A step of fewer than ``shape.pairs`` pairs (the last of an epoch) gets as few micro-batches as it needs.

    Args:
        pairs: Positions of the step's pairs in the dataset, at least one, at most ``shape.pairs``.
        tokens: Tokens of each of them, in the same order.
        shape: Sizes.
        fixed: Give even a short step ``shape.accumulation`` micro-batches per process, for streams: their number of
            steps is unknown.

    Returns:
        The plan; each pair is in exactly one micro-batch that is no filler.
    """
    if shape.max_tokens is None:
        per_process = shape.accumulation if fixed else micro_batches_per_process(len(pairs), shape)
        bins = _balanced(tokens, per_process * shape.processes, capacity=shape.micro_batch_size)
    else:
        bins = _within(tokens, shape.max_tokens, shape.processes)
    shortest = min(range(len(pairs)), key=lambda i: tokens[i])
    filler = MicroBatch((pairs[shortest],), is_filler=True)
    filled = [MicroBatch(tuple(pairs[i] for i in members)) if members else filler for members in bins]
    return StepPlan(
        pairs=tuple(pairs),
        micro_batches=tuple(tuple(filled[process :: shape.processes]) for process in range(shape.processes)),
    )


def _balanced(tokens: Sequence[int], num_bins: int, capacity: int) -> list[list[int]]:
    """Distribute the indices of ``tokens`` over bins of at most ``capacity``, the longest first."""
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    open_bins = [(0, index) for index in range(num_bins)]
    for i in sorted(range(len(tokens)), key=lambda i: (-tokens[i], i)):
        load, index = heappop(open_bins)
        bins[index].append(i)
        if len(bins[index]) < capacity:
            heappush(open_bins, (load + tokens[i], index))
    return bins


def _within(tokens: Sequence[int], max_tokens: int, processes: int) -> list[list[int]]:
    """Distribute the indices over the fewest bins of at most ``max_tokens``, the same number of bins per process.

    An index with more tokens has a bin alone.
    """
    per_process = ceil(sum(min(length, max_tokens) for length in tokens) / (processes * max_tokens))
    while True:
        bins = _balanced(tokens, per_process * processes, capacity=len(tokens))
        if all(len(members) < 2 or sum(tokens[i] for i in members) <= max_tokens for members in bins):
            return bins
        per_process += 1


def plan_epoch_step(order: np.ndarray, tokens: np.ndarray, step: int, shape: StepShape) -> StepPlan:
    """Return the plan of step number ``step`` (from 0) of an epoch, directly.

    ``order`` is that of :func:`epoch_order`, ``tokens`` those of each pair of the dataset, by position.
    """
    members = order[step * shape.pairs : (step + 1) * shape.pairs]
    return plan_step(members.tolist(), tokens[members].tolist(), shape)


def plan_evaluation(tokens: np.ndarray, shape: StepShape) -> list[StepPlan]:
    """Plan an evaluation of every pair once, similar lengths together and the longest first, to fail early for memory.

    ``tokens`` are those of each pair of the dataset, by position. The accumulation of ``shape`` is 1, so each plan has
    one micro-batch per process; with a token budget there may be several.
    """
    order = np.argsort(-tokens, kind="stable")
    return [plan_epoch_step(order, tokens, step, shape) for step in range(num_steps(len(order), shape))]
