"""Rules about the optimiser: learning rate, warm-up, number of steps, gradients."""

from __future__ import annotations

import numpy as np

from ..findings import Finding, Verdict
from ..history import History
from ..statistics import MAD_OF_NORMAL, MOST_POINTS, blocks, reversal, smooth, spikes, start_and_end, trend
from .registry import highest_learning_rate, rule, times

# The usual range of ORPO runs: the paper took 8e-6 for 2.7B to 7B; TRL's and alignment-handbook's recipes 5e-6 to 2e-5,
# with LoRA up to 2e-4.
LOWEST_FULL, HIGHEST_FULL = 5e-6, 2e-5
LOWEST_ADAPTER, HIGHEST_ADAPTER = 1e-5, 2e-4
# Small models take more: SmolLM2-135M was instruction-tuned with 1e-3, and our demo takes 6e-4 (docs/log.md).
SMALL_MODEL_PARAMETERS, SMALL_MODEL_FACTOR = 5e8, 10
# Out of the range by so much is worth a word even where nothing shows yet.
FAR_OUT = 10

# What a rate that is too high does: the loss leaves its start upwards, or the held-out NLL gets worse than untrained.
LOSS_ABOVE_START = 0.1
HELD_OUT_ABOVE_START = 0.1
# It does so where the steps are largest: not after LEAST_POINTS log lines with rates higher by this factor.
HARMLESS_ABOVE = 1.25
# What one that is too low does: nothing.
LEAST_FALL = 0.02
LEAST_POINTS = 10

# Five times the running median and six robust deviations: a normal distribution does that once in 10^9 lines.
SPIKE_RATIO, SPIKE_Z = 5.0, 6.0
SPIKES_ACT = 3

# Share of all steps. Recipes warm up over 3% to 10% (alignment-handbook: 10%).
WARM_UP_WATCH, WARM_UP_ACT = 0.3, 0.5

# With fewer, AdamW's second moment (beta2 0.999) has hardly begun to average.
FEW_STEPS_WATCH, FEW_STEPS_ACT = 50, 10


def usual_range(history: History) -> tuple[float, float]:
    """Lowest and highest usual learning rate, for what is known of the run."""
    adapter = history.trains_adapter
    lowest = LOWEST_ADAPTER if adapter else LOWEST_FULL
    highest = HIGHEST_FULL if adapter is False else HIGHEST_ADAPTER
    parameters = history.setting("parameters")
    return lowest, highest * (SMALL_MODEL_FACTOR if parameters and parameters < SMALL_MODEL_PARAMETERS else 1)


@rule
def learning_rate_high(history: History) -> Finding | None:
    """A learning rate above the usual range, and what comes of it."""
    rate, (_, highest) = highest_learning_rate(history), usual_range(history)
    if rate is None or rate <= highest:
        return None
    harm = _harm(history)
    if harm is None and rate < FAR_OUT * highest:
        return None
    metric, step, evidence = harm or ("learning_rate", None, "nothing in the curves shows harm so far")
    return Finding(
        "learning_rate_high",
        Verdict.ACT if harm else Verdict.WATCH,
        metric,
        step,
        f"{rate:.3g}, where up to {highest:.3g} is usual {_of_what(history)}; {evidence}",
        "the steps are too large: the model jumps over what it should learn",
        times("learning_rate", rate, highest / rate / 2),
    )


def _harm(history: History) -> tuple[str, int, str] | None:
    """Metric, step and words of what a learning rate that is too high has done."""
    loss = blocks(history.get("loss").finite(), MOST_POINTS)
    if len(loss) >= 6:
        smoothed = smooth(loss.values, max(5, len(loss) // 10 * 2 + 1))
        noise = float(np.median(np.abs(loss.values - smoothed))) / MAD_OF_NORMAL
        start, top = float(min(loss.values[0], np.median(loss.values[:3]))), int(np.argmax(smoothed))
        harmed = smoothed > max((1 + LOSS_ABOVE_START) * start, start + 3 * noise)
        if start > 0 and harmed[top] and not _took_larger_steps(history, loss.steps[int(np.argmax(harmed))]):
            return "loss", int(loss.steps[top]), f"the loss went from {start:.2f} up to {smoothed[top]:.2f}"
    training = start_and_end(history.get("nll_loss"))
    for name, found in history.held_out.items():
        nll = found["nll_loss"].finite() if "nll_loss" in found else None
        if nll is None or len(nll) < 2 or nll.values[-1] <= nll.values[0] + HELD_OUT_ABOVE_START:
            continue
        if training is None or training[1] >= nll.values[0]:  # else it is learned by heart: over-fitting
            said = f"held out, the NLL went from {nll.values[0]:.2f} to {nll.values[-1]:.2f}"
            return f"eval_{name}_nll_loss" if name else "eval_nll_loss", int(nll.steps[-1]), said
    back = reversal(history.get("nll_loss"), upward=True)
    if back is not None and back.change > HELD_OUT_ABOVE_START:
        return "nll_loss", back.step, f"the NLL rises since step {back.step}, from {back.turn:.2f} to {back.end:.2f}"
    return None


def _took_larger_steps(history: History, step: float) -> bool:
    """Whether the run did well with a higher rate than at a step: then what begins there comes from something else."""
    rate = history.get("learning_rate").finite().until(step)
    return len(rate) > 0 and int((rate.values > HARMLESS_ABOVE * rate.values[-1]).sum()) >= LEAST_POINTS


@rule
def learning_rate_low(history: History) -> Finding | None:
    """A learning rate below the usual range, with which nothing moves."""
    rate, (lowest, _) = highest_learning_rate(history), usual_range(history)
    loss = history.get("loss")
    levels, moving = start_and_end(loss), trend(loss)
    if rate is None or rate >= lowest or levels is None or moving is None or len(loss) < LEAST_POINTS:
        return None
    fall = 1 - levels[1] / levels[0] if levels[0] > 0 else 0.0
    if moving.falls and fall >= LEAST_FALL:
        return None
    return Finding(
        "learning_rate_low",
        Verdict.ACT if history.last_step >= history.steps_planned / 2 else Verdict.WATCH,
        "loss",
        int(loss.steps[0]),
        f"{rate:.3g}, where {lowest:.3g} and more is usual {_of_what(history)}; the loss went from {levels[0]:.3f} to"
        f" {levels[1]:.3f} in {history.last_step} steps",
        "the weights hardly move",
        times("learning_rate", rate, 2 * lowest / rate),
    )


def _of_what(history: History) -> str:
    return {True: "with an adapter", False: "for all weights", None: "with or without an adapter"}[
        history.trains_adapter
    ]


@rule
def gradient_spikes(history: History) -> Finding | None:
    """Single steps with gradients far above their neighbours'."""
    gradients = history.get("grad_norm")
    found = spikes(gradients, SPIKE_RATIO, SPIKE_Z)
    if len(found) == 0:
        return None
    top = int(np.argmax(found.values))
    usual = float(np.median(gradients.finite().values))
    return Finding(
        "gradient_spikes",
        Verdict.ACT if len(found) >= SPIKES_ACT else Verdict.WATCH,
        "grad_norm",
        int(found.steps[0]),
        f"{len(found)} of {len(gradients)} log lines, up to {found.values[top]:.3g} at step {int(found.steps[top])};"
        f" the median is {usual:.3g}",
        "a few pairs pull much harder than the others: broken text, another language, or an answer of one token",
        f"look at the pairs of those steps; max_grad_norm {max(usual, 0.1):.2g} bounds what they do; more pairs a step",
    )


@rule
def warm_up_long(history: History) -> Finding | None:
    """The learning rate is still on its way up when much of the run is over."""
    rate, planned = history.get("learning_rate").finite(), history.steps_planned
    if len(rate) < 3 or planned < FEW_STEPS_ACT:
        return None
    top = int(np.argmax(rate.values))
    share = float(rate.steps[top]) / planned
    if rate.values[0] > rate.values[top] / 2 or share < WARM_UP_WATCH:
        return None
    return Finding(
        "warm_up_long",
        Verdict.ACT if share >= WARM_UP_ACT else Verdict.WATCH,
        "learning_rate",
        int(rate.steps[top]),
        f"the highest rate, {rate.values[top]:.3g}, comes at step {int(rate.steps[top])} of {planned} ({share:.0%})",
        "most of the run is spent with steps that are too small to learn from",
        f"warmup_steps {int(rate.steps[top])} -> {max(1, round(0.1 * planned))} (a tenth of the run)",
    )


@rule
def too_few_steps(history: History) -> Finding | None:
    """The run is too short for its curves, and its optimiser, to say anything."""
    planned = history.steps_planned
    if history.steps_are_lines or planned <= 0 or planned >= FEW_STEPS_WATCH:
        return None
    return Finding(
        "too_few_steps",
        Verdict.ACT if planned < FEW_STEPS_ACT else Verdict.WATCH,
        "loss",
        None,
        f"{planned} optimizer steps in all; {FEW_STEPS_WATCH} are few, {FEW_STEPS_ACT} next to nothing",
        "too little is learned, and too little is seen to tell whether it goes well",
        f"more epochs, or fewer pairs a step: gradient_accumulation_steps and batch size so that there are"
        f" {2 * FEW_STEPS_WATCH} steps or more",
    )
