"""Judge the course of training: NaN, skipped steps, learning rate, warm-up, gradients, length and speed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...system.words import counted
from ..findings import Finding, Verdict
from ..history import EMPTY, History, Series
from ..names import in_set
from ..statistics import MAD_OF_NORMAL, MAX_POINTS, blocks, change_point, reversal, smooth, spikes, start_and_end, trend
from .advice import highest_learning_rate, in_words, kinds_of_run, usual_range
from .rule import rule

# A step without these is lost; others, such as perplexity, may overflow in a sound run.
VITAL = ("loss", "nll_loss", "or_loss", "logps/chosen", "logps/rejected", "grad_norm")
# fp16's loss scale is found by overflowing: single NaN gradients at the start are part of that (PyTorch, torch.amp).
GRADIENT_NANS_OF_LOSS_SCALING = 2

# Exactly 0 in two lines is NaN hidden by logging_nan_inf_filter, or no target tokens (TRL #1473).
ZERO_LOSSES = 2

# The guard rolls back after three in a row. Odd rows, each seen once an epoch, do not add up to 1% of the steps.
SKIPPED_ACT, SKIPPED_SHARE_ACT = 3, 0.01

# Pettitt's test at 99%, and a drop that a person would notice.
THROUGHPUT_P = 0.01
THROUGHPUT_WATCH, THROUGHPUT_ACT = 0.7, 0.25

FAR_OUT = 10  # times the top of the range: to be watched even if no harm shows yet

# Harm of a rate that is too high: the loss rises above its start (a share), or the held-out NLL (nats) above its own.
LOSS_ABOVE_START, HELD_OUT_ABOVE_START = 0.1, 0.1
# That happens while the steps are largest, not after MIN_POINTS log lines with rates higher by this factor.
HARMLESS_ABOVE = 1.25
# With a rate that is too low the loss falls by less than this share.
MIN_FALL = 0.02
MIN_POINTS = 10

# Five times the running median and six robust deviations: a normal distribution does that once in 10^9 lines.
SPIKE_RATIO, SPIKE_Z = 5.0, 6.0
SPIKES_ACT = 3

# Share of all steps. Recipes warm up over 3% to 10% (alignment-handbook: 10%).
WARM_UP_WATCH, WARM_UP_ACT = 0.3, 0.5

# With fewer, AdamW's second moment (beta2 0.999) has hardly begun to average.
FEW_STEPS_WATCH, FEW_STEPS_ACT = 50, 10


@rule
def not_finite(history: History) -> Finding | None:
    """Find NaN or infinity in the training metrics."""
    bad = _not_finite(history.training)
    if not bad or (set(bad) == {"grad_norm"} and len(bad["grad_norm"]) <= GRADIENT_NANS_OF_LOSS_SCALING):
        return None
    metric = min(bad, key=lambda name: bad[name].steps[0])
    step = int(bad[metric].steps[0])
    others = sorted({*bad, *(key for _, key, _ in _bad_evaluations(history))} - {metric})
    return Finding(
        Verdict.ACT,
        metric,
        step,
        f"NaN or infinite in {len(bad[metric])} of {len(history.get(metric))} values, from {history.at(step)}"
        + (f"; also in {', '.join(others)}" if others else ""),
        "the weights are corrupt from there on, and so is every checkpoint saved since",
        "start again from a checkpoint before that step; look for pairs that fill max_length with their prompt or have"
        " an empty answer (`oddsmith data check`); compute in bf16 or float32 instead of fp16",
    )


@rule
def evaluation_not_finite(history: History) -> Finding | None:
    """Find NaN or infinity in an evaluation while the training metrics are finite: pairs are bad, not the weights."""
    bad = _bad_evaluations(history)
    if not bad or _not_finite(history.training).keys() - {"grad_norm"}:
        return None
    step, metric, share = min(bad, key=lambda entry: entry[0])
    return Finding(
        Verdict.WATCH,
        metric,
        step,
        f"NaN or infinite in {share} evaluations, first at {history.at(step)}"
        + ("; the training metrics are finite" if len(history.get("loss")) else ""),
        "these evaluations have no result because of some of their pairs, which training does not use",
        "look at the rows that events.jsonl names (event not_finite), or at held-out pairs without an answer token"
        " (`oddsmith data check`)",
    )


def _bad_evaluations(history: History) -> list[tuple[int, str, str]]:
    """Return, for each held-out metric with NaN or infinity, the first such step, its name, and ``2 of 5``."""
    return [
        (int(series.steps[0]), in_set(name, metric), f"{len(series)} of {len(metrics[metric])}")
        for name, metrics in history.held_out.items()
        for metric, series in _not_finite(metrics).items()
    ]


def _not_finite(metrics: Mapping[str, Series]) -> dict[str, Series]:
    """Return the points of the vital metrics that are NaN or infinite, in the order of ``VITAL``."""
    found = {name: metrics[name].where(~np.isfinite(metrics[name].values)) for name in VITAL if name in metrics}
    return {name: series for name, series in found.items() if len(series)}


@rule
def steps_skipped(history: History) -> Finding | None:
    """Find steps that the guard skipped."""
    skipped = history.get("skipped_steps").finite()
    skipped = skipped.where(skipped.values > 0)
    if not len(skipped):
        return None
    count, steps = int(skipped.values.sum()), max(history.last_step, 1)
    first, last = (int(skipped.steps[place]) for place in (0, -1))
    return Finding(
        Verdict.ACT if count >= SKIPPED_ACT and count / steps >= SKIPPED_SHARE_ACT else Verdict.WATCH,
        "skipped_steps",
        first,
        f"{count} of {steps} steps, the first by {history.at(first)}, the last by {history.at(last)}",
        "loss or gradient of these steps were NaN, infinite or far off; the weights are sound, but nothing is learned"
        " from these pairs",
        "look at the rows that events.jsonl names (event skipped); then {learning_rate}, or bf16 instead of fp16",
        {"learning_rate": 0.5},
    )


@rule
def zero_loss(history: History) -> Finding | None:
    """Find a loss of exactly 0."""
    loss = history.get("loss")
    zeros = loss.where(loss.values == 0)
    if len(zeros) < ZERO_LOSSES:
        return None
    return Finding(
        Verdict.ACT,
        "loss",
        int(zeros.steps[0]),
        f"exactly 0 in {len(zeros)} of {len(loss)} log lines, from {history.at(zeros.steps[0])}",
        "nothing is learned: the loss was not finite and was hidden, or no token of the answers is a target",
        "set logging_nan_inf_filter to false to see it; check that answers are not cut away by max_length, and that the"
        " prompt is shorter than max_length",
    )


@rule
def throughput_drop(history: History) -> Finding | None:
    """Find a run that has become slower for good."""
    name = "tokens_per_second" if len(history.get("tokens_per_second")) else "tokens_per_second_per_gpu"
    speed = history.get(name)
    found = change_point(speed)
    if found is None or found.p > THROUGHPUT_P or found.before <= 0:
        return None
    last = speed.finite().values[-max(3, len(speed) // 6) :]
    ratio = max(found.after, float(np.median(last))) / found.before
    if ratio > THROUGHPUT_WATCH:
        return None
    return Finding(
        Verdict.ACT if ratio <= THROUGHPUT_ACT else Verdict.WATCH,
        name,
        found.step,
        f"{found.before:,.0f} tokens/s before {history.at(found.step)}, {found.after:,.0f} since"
        f" ({ratio:.0%}; p = {found.p:.1g})",
        "something else uses the machine or the disk: the result does not suffer, only the time",
        "look for other processes, a hot or throttled device, swapping, and a data loader that waits"
        " (dataloader_num_workers)",
    )


@rule
def learning_rate_high(history: History) -> Finding | None:
    """Find a learning rate above the usual range, and the harm it does."""
    rate, highest = highest_learning_rate(history), max(usual_range(history, kind)[1] for kind in kinds_of_run(history))
    if rate is None or rate <= highest:
        return None
    harm = _harm(history)
    if harm is None and rate < FAR_OUT * highest:
        return None
    metric, step, evidence = harm or ("learning_rate", None, "nothing in the curves shows harm so far")
    return Finding(
        Verdict.ACT if harm else Verdict.WATCH,
        metric,
        step,
        f"{rate:.3g}, where the highest usual rate is {in_words(history, 1)}; {evidence}",
        "the steps are too large: the model jumps over what it should learn",
        "{learning_rate}",
        {"learning_rate": highest / rate / 2},
    )


def _harm(history: History) -> tuple[str, int, str] | None:
    """Return metric, step and evidence of the harm that a learning rate above the range has done."""
    loss = blocks(history.get("loss").finite(), MAX_POINTS)
    if len(loss) >= 6:
        smoothed = smooth(loss.values, max(5, len(loss) // 10 * 2 + 1))
        noise = float(np.median(np.abs(loss.values - smoothed))) / MAD_OF_NORMAL
        start, top = float(min(loss.values[0], np.median(loss.values[:3]))), int(np.argmax(smoothed))
        harmed = smoothed > max((1 + LOSS_ABOVE_START) * start, start + 3 * noise)
        if start > 0 and harmed[top] and not _took_larger_steps(history, loss.steps[int(np.argmax(harmed))]):
            return "loss", int(loss.steps[top]), f"the loss went from {start:.2f} up to {smoothed[top]:.2f}"
    training = start_and_end(history.get("nll_loss"))
    for name, found in history.held_out.items():
        nll = found.get("nll_loss", EMPTY).finite()
        if len(nll) < 2 or nll.values[-1] <= nll.values[0] + HELD_OUT_ABOVE_START:
            continue
        if training is None or training[1] >= nll.values[0]:  # else the pairs are memorised: over-fitting
            said = f"held out, the NLL went from {nll.values[0]:.2f} to {nll.values[-1]:.2f}"
            return in_set(name, "nll_loss"), int(nll.steps[-1]), said
    back = reversal(history.get("nll_loss"), upward=True)
    if back is not None and back.change > HELD_OUT_ABOVE_START:
        return (
            "nll_loss",
            back.step,
            f"the NLL rises since {history.at(back.step)}, from {back.turn:.2f} to {back.end:.2f}",
        )
    return None


def _took_larger_steps(history: History, step: float) -> bool:
    """Return whether the run had a higher rate for long before a step, so that later harm has another cause."""
    rate = history.get("learning_rate").finite().until(step)
    return len(rate) > 0 and int((rate.values > HARMLESS_ABOVE * rate.values[-1]).sum()) >= MIN_POINTS


@rule
def learning_rate_low(history: History) -> Finding | None:
    """Find a learning rate below the usual range with which the loss does not fall."""
    rate, lowest = highest_learning_rate(history), min(usual_range(history, kind)[0] for kind in kinds_of_run(history))
    loss = history.get("loss")
    levels, moving = start_and_end(loss), trend(loss)
    if rate is None or rate >= lowest or levels is None or moving is None or len(loss) < MIN_POINTS:
        return None
    fall = 1 - levels[1] / levels[0] if levels[0] > 0 else 0.0
    if moving.falls and fall >= MIN_FALL:
        return None
    return Finding(
        Verdict.ACT if history.last_step >= history.steps_planned / 2 else Verdict.WATCH,
        "loss",
        int(loss.steps[0]),
        f"{rate:.3g}, where the lowest usual rate is {in_words(history, 0)};"
        f" the loss went from {levels[0]:.3f} to {levels[1]:.3f} in {history.last_step} {history.unit}",
        "the weights hardly move",
        "{learning_rate}",
        {"learning_rate": 2.0},
    )


@rule
def gradient_spikes(history: History) -> Finding | None:
    """Find single steps with gradients far above those around them."""
    gradients = history.get("grad_norm")
    found = spikes(gradients, SPIKE_RATIO, SPIKE_Z)
    if len(found) == 0:
        return None
    top = int(np.argmax(found.values))
    usual = float(np.median(gradients.finite().values))
    return Finding(
        Verdict.ACT if len(found) >= SPIKES_ACT else Verdict.WATCH,
        "grad_norm",
        int(found.steps[0]),
        f"{len(found)} of {len(gradients)} log lines, up to {found.values[top]:.3g} at {history.at(found.steps[top])};"
        f" the median is {usual:.3g}",
        "a few pairs pull much harder than the others: broken text, another language, or an answer of one token",
        f"look at the pairs of those steps; max_grad_norm {max(usual, 0.1):.2g} limits them; more pairs per step",
    )


@rule
def warm_up_long(history: History) -> Finding | None:
    """Find a learning rate that is still rising when much of the run is over."""
    rate, planned = history.get("learning_rate").finite(), history.steps_planned
    if len(rate) < 3 or planned < FEW_STEPS_ACT:
        return None
    top = int(np.argmax(rate.values))
    if history.is_excerpt and history.setting("max_steps") is None and rate.values[-1] > rate.values[top] / 10:
        return None  # the end of the schedule is not in it
    share = float(rate.steps[top]) / planned
    if rate.values[0] > rate.values[top] / 2 or share < WARM_UP_WATCH:
        return None
    return Finding(
        Verdict.ACT if share >= WARM_UP_ACT else Verdict.WATCH,
        "learning_rate",
        int(rate.steps[top]),
        f"the highest rate, {rate.values[top]:.3g}, comes at {history.at(rate.steps[top])} of {planned} ({share:.0%})",
        "most of the run is spent with steps that are too small to learn from",
        f"warmup_steps {int(rate.steps[top])} -> {max(1, round(0.1 * planned))} (a tenth of the run)"
        if history.unit == "steps"
        else "warm up over a tenth of the run",
    )


@rule
def too_few_steps(history: History) -> Finding | None:
    """Find a run that is too short for its optimiser and for any judgement."""
    planned = history.setting("max_steps")
    if planned is None or not 0 < planned < FEW_STEPS_WATCH or (history.is_excerpt and history.last_step < planned):
        return None
    return Finding(
        Verdict.ACT if planned < FEW_STEPS_ACT else Verdict.WATCH,
        "loss",
        None,
        f"{counted(round(planned), 'optimizer step')} in all; {FEW_STEPS_WATCH} are few, {FEW_STEPS_ACT} next to"
        " nothing",
        "too little is learned, and too little is logged to judge the run",
        "fewer pairs per step, or more pairs: gradient_accumulation_steps and batch size so that there are"
        f" {2 * FEW_STEPS_WATCH} steps or more",
    )
