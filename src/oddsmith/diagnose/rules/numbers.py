"""Rules about numbers that are none, losses of nothing, and speed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..findings import Finding, Verdict
from ..history import History, Series
from ..statistics import change_point
from .registry import held_out_key, highest_learning_rate, rule, times

# Without these the step itself is lost; other metrics may overflow where all is well (perplexity).
VITAL = ("loss", "nll_loss", "or_loss", "logps/chosen", "logps/rejected", "grad_norm")
# fp16's loss scale is searched by overflowing: single NaN gradients at the start are part of it (PyTorch, torch.amp).
GRADIENT_NANS_OF_LOSS_SCALING = 2

# A loss of exactly 0 in two lines is none: NaN hidden by logging_nan_inf_filter, or no target tokens (TRL #1473).
ZERO_LOSSES = 2

# The guard goes back to a checkpoint after three in a row. What is skipped is not learned from: 1% of the steps is more
# than odd rows, each of which is met once an epoch.
SKIPPED_ACT, SKIPPED_SHARE_ACT = 3, 0.01

# Pettitt's test at 99%; and the drop has to be one that a person would notice.
THROUGHPUT_P = 0.01
THROUGHPUT_WATCH, THROUGHPUT_ACT = 0.7, 0.25


@rule
def not_finite(history: History) -> Finding | None:
    """NaN or infinity in the training metrics."""
    bad = _not_finite(history.training)
    counts = {name: len(series) for name, series in bad.items()}
    if not bad or (set(bad) == {"grad_norm"} and counts["grad_norm"] <= GRADIENT_NANS_OF_LOSS_SCALING):
        return None
    metric = min(bad, key=lambda name: bad[name].steps[0])
    step = int(bad[metric].steps[0])
    return Finding(
        "not_finite",
        Verdict.ACT,
        metric,
        step,
        f"NaN or infinite in {counts[metric]} of {len(history.get(metric))} values, from step {step}"
        + (f"; also in {', '.join(sorted(set(bad) - {metric}))}" if len(bad) > 1 else ""),
        "the weights are NaN from there on, and so is everything saved since",
        "start again from a checkpoint before that step; look for pairs that fill max_length with their prompt or have"
        " an empty answer (`oddsmith data check`); compute in bf16 or float32 instead of fp16",
    )


@rule
def evaluation_not_finite(history: History) -> Finding | None:
    """NaN or infinity in an evaluation while the training metrics are finite: some of its pairs, not the weights."""
    if _not_finite({name: series for name, series in history.training.items() if name != "grad_norm"}):
        return None
    bad, sizes = {}, {}
    for name, found in history.held_out.items():
        for metric, series in _not_finite(found).items():
            bad[held_out_key(name, metric)], sizes[held_out_key(name, metric)] = series, len(found[metric])
    if not bad:
        return None
    metric = min(bad, key=lambda key: bad[key].steps[0])
    steps = bad[metric].steps.astype(int)
    return Finding(
        "evaluation_not_finite",
        Verdict.WATCH,
        metric,
        int(steps[0]),
        f"NaN or infinite in {len(steps)} of {sizes[metric]} evaluations, first at step {steps[0]}"
        + ("; the training metrics are finite" if len(history.get("loss")) else ""),
        "these evaluations have no result because of some of their pairs, which training does not use",
        "look at the rows that events.jsonl names (event not_finite), or at held-out pairs without an answer token"
        " (`oddsmith data check`)",
    )


def _not_finite(metrics: Mapping[str, Series]) -> dict[str, Series]:
    """Return the points of the vital metrics that are NaN or infinite, in the order of ``VITAL``."""
    found = {name: metrics[name].where(~np.isfinite(metrics[name].values)) for name in VITAL if name in metrics}
    return {name: series for name, series in found.items() if len(series)}


@rule
def steps_skipped(history: History) -> Finding | None:
    """Steps that the guard kept the optimizer from."""
    skipped = history.get("skipped_steps").finite()
    skipped = skipped.where(skipped.values > 0)
    if not len(skipped):
        return None
    count, steps = int(skipped.values.sum()), max(history.last_step, 1)
    first, last = (int(skipped.steps[place]) for place in (0, -1))
    return Finding(
        "steps_skipped",
        Verdict.ACT if count >= SKIPPED_ACT and count / steps >= SKIPPED_SHARE_ACT else Verdict.WATCH,
        "skipped_steps",
        first,
        f"{count} of {steps} steps, the first by step {first}, the last by step {last}",
        "loss or gradient of these steps were no numbers, or far off: the weights are sound, but these pairs teach"
        " nothing",
        f"look at the rows that events.jsonl names (event skipped); then"
        f" {times('learning_rate', highest_learning_rate(history), 0.5)}, or bf16 instead of fp16",
    )


@rule
def zero_loss(history: History) -> Finding | None:
    """A loss of exactly 0."""
    loss = history.get("loss")
    zeros = loss.where(loss.values == 0)
    if len(zeros) < ZERO_LOSSES:
        return None
    return Finding(
        "zero_loss",
        Verdict.ACT,
        "loss",
        int(zeros.steps[0]),
        f"exactly 0 in {len(zeros)} of {len(loss)} log lines, from step {int(zeros.steps[0])}",
        "nothing is learned: the loss was not finite and was hidden, or no token of the answers is a target",
        "set logging_nan_inf_filter to false to see it; check that answers are not cut away by max_length, and that the"
        " prompt is shorter than max_length",
    )


@rule
def throughput_drop(history: History) -> Finding | None:
    """The run has become slower, and stays so."""
    speed = history.get("tokens_per_second")
    found = change_point(speed)
    if found is None or found.p > THROUGHPUT_P or found.before <= 0:
        return None
    last = speed.finite().values[-max(3, len(speed) // 6) :]
    ratio = max(found.after, float(np.median(last))) / found.before
    if ratio > THROUGHPUT_WATCH:
        return None
    return Finding(
        "throughput_drop",
        Verdict.ACT if ratio <= THROUGHPUT_ACT else Verdict.WATCH,
        "tokens_per_second",
        found.step,
        f"{found.before:,.0f} tokens/s before step {found.step}, {found.after:,.0f} since"
        f" ({ratio:.0%}; p = {found.p:.1g})",
        "something else wants the machine, or the disk: the result does not suffer, the time does",
        "look for other processes, a hot or throttled device, swapping, and a data loader that waits"
        " (dataloader_num_workers)",
    )
