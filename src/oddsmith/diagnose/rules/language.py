"""Judge the language model: whether it learns the chosen answers and keeps its former abilities."""

from __future__ import annotations

import numpy as np

from ..findings import Finding, Verdict
from ..history import EMPTY, History, Series
from ..names import in_set
from ..statistics import (
    MAD_OF_NORMAL,
    MAX_POINTS,
    MIN_REVERSAL_POINTS,
    blocks,
    change_point,
    reversal,
    smooth,
    start_and_end,
    trend,
)
from .preference import MIN_RISE
from .rule import ANCHOR, graded, rule

# The total loss, relative to its lowest level: a working optimiser does not lose a twentieth for good.
LOSS_RISE_WATCH, LOSS_RISE_ACT = 0.05, 0.2
JUMP_P = 0.01
FEW_VALUES = 20  # too few for a turn or a jump that is not clean; the trend of all of them is asked instead
LOWER_RATE = {"learning_rate": 0.3}

# Nats per token: exp(0.2) is 22% of perplexity, exp(0.5) 65%.
NLL_RISE_WATCH, NLL_RISE_ACT = 0.2, 0.5

# Nats per token above the model before training. On an anchor set, 0.1 (10% of perplexity) is a usual price of
# alignment; at 0.5 the model has become a different one.
FORGOTTEN_WATCH, FORGOTTEN_ACT = 0.1, 0.5
HELD_OUT_WORSE_WATCH, HELD_OUT_WORSE_ACT = 0.1, 0.3

# Held-out loss, relative to its lowest. The usual patience of early stopping is one or two evaluations of any rise.
OVER_FITTING_WATCH, OVER_FITTING_ACT = 0.03, 0.1

# Nats per token. Pretrained models have 1 to 3 on text like their own; one with 4 (a perplexity of 55) cannot write
# the answers yet.
FORMAT_NLL = 4.0


@rule
def loss_rising(history: History) -> Finding | None:
    """Find a total loss that rises again, jumps to another level, or, of few values, is far above the first ones."""
    loss = history.get("loss").finite()
    turn, jump = reversal(loss, upward=True), change_point(loss)
    if turn is not None and turn.turn > 0:
        step, low, high, how_sure = turn.step, turn.turn, turn.end, f"z = {turn.z:.1f}"
    elif jump is not None and jump.p <= JUMP_P and 0 < jump.before < jump.after:
        step, low, high, how_sure = jump.step, jump.before, jump.after, f"p = {jump.p:.1g}"
    elif (rise := _rise_of_few(loss)) is not None:
        step, low, high, how_sure = rise
    else:
        return None
    verdict = graded(high / low - 1, LOSS_RISE_WATCH, LOSS_RISE_ACT)
    if verdict is None:
        return None
    return Finding(
        verdict,
        "loss",
        step,
        f"{low:.3f} around {history.at(step)}, {high:.3f} later ({high / low - 1:+.0%}, {how_sure})",
        "the steps have become too large to descend, or the pairs of this part differ from those before",
        "{learning_rate}; shuffle the pairs if they are in some order",
        LOWER_RATE,
    )


def _rise_of_few(loss: Series) -> tuple[int, float, float, str] | None:
    """Return first step, first and last level, and certainty of a loss with few values that rises much."""
    found, count = trend(loss) if len(loss) < FEW_VALUES else None, max(1, len(loss) // 4)
    if found is None or not found.rises:
        return None
    low, high = float(np.median(loss.values[:count])), float(np.median(loss.values[-count:]))
    return (found.start, low, high, f"z = {found.z:.1f}") if 0 < low * (1 + LOSS_RISE_ACT) <= high else None


@rule
def nll_diverging(history: History) -> Finding | None:
    """Find a training NLL of the chosen answers that rises again, or ends above its start."""
    nll = history.get("nll_loss")
    back = reversal(nll, upward=True)
    shown = (back.step, back.turn, back.end) if back else _above_start(nll)
    verdict = graded(shown[2] - shown[1], NLL_RISE_WATCH, NLL_RISE_ACT) if shown else None
    if shown is None or verdict is None:
        return None
    return Finding(
        verdict,
        "nll_loss",
        shown[0],
        f"{shown[1]:.2f} nats per token around {history.at(shown[0])}, {shown[2]:.2f} at the end",
        "the model loses language for the sake of the preference, or the steps are too large",
        "{learning_rate}; {beta}",
        {**LOWER_RATE, "beta": 0.5},
    )


def _above_start(nll: Series) -> tuple[int, float, float] | None:
    """Return first step, first and last level if the last is higher by more than three times the noise."""
    nll = blocks(nll.finite(), MAX_POINTS)
    if len(nll) < MIN_REVERSAL_POINTS:
        return None
    start, end = float(min(nll.values[0], np.median(nll.values[:3]))), float(np.median(nll.values[-5:]))
    noise = float(np.median(np.abs(nll.values - smooth(nll.values, 5)))) / MAD_OF_NORMAL
    return (int(nll.steps[0]), start, end) if end - start > 3 * noise else None


def _held_out_rises(history: History) -> list[tuple[str, Series, float, bool]]:
    """Return the name of each held-out set, its NLL, the rise above its first value, and whether it is an anchor."""
    rises = []
    for name, found in history.held_out.items():
        nll = found.get("nll_loss", found.get("loss", EMPTY)).finite()
        if len(nll) >= 2:
            rises.append((name, nll, float(nll.values[-1] - nll.values[0]), name == ANCHOR))
    return rises


@rule
def forgetting(history: History) -> Finding | None:
    """Find held-out text, above all an anchor set, that is less likely than before training."""
    findings = []
    for name, series, rise, is_anchor in _held_out_rises(history):
        if series.steps[0] > 0.05 * history.steps_planned:  # not the model before training
            continue
        first = "before training" if series.steps[0] == 0 else f"at {history.at(series.steps[0])}"
        limits = (FORGOTTEN_WATCH, FORGOTTEN_ACT) if is_anchor else (HELD_OUT_WORSE_WATCH, HELD_OUT_WORSE_ACT)
        verdict = graded(rise, *limits)
        if verdict is None:
            continue
        worse = series.steps[series.values > series.values[0] + limits[0]]
        what = f"the anchor set {name!r}" if is_anchor else "the held-out pairs"
        findings.append(
            Finding(
                verdict,
                in_set(name, "nll_loss"),
                int(worse[0]),
                f"{what}: {series.values[0]:.2f} nats per token {first}, {series.values[-1]:.2f} now"
                f" (perplexity x {np.exp(min(rise, 50)):.2f})",
                "the model loses abilities it had" if is_anchor else "the model has become worse at good answers",
                "{learning_rate}; "
                + ("" if history.trains_adapter else "train an adapter instead of all weights, or ")
                + "mix in pairs that exercise what must be kept",
                LOWER_RATE,
            )
        )
    return max(findings, key=lambda finding: finding.verdict.severity, default=None)


@rule
def over_fitting(history: History) -> Finding | None:
    """Find a training loss that goes on falling while the held-out one rises."""
    for name, metrics in history.held_out.items():
        for metric in ("nll_loss", "loss"):
            if name != ANCHOR and (finding := _parted(history, name, metric, metrics.get(metric, EMPTY).finite())):
                return finding
    return None


def _parted(history: History, name: str, metric: str, held_out: Series) -> Finding | None:
    if len(held_out) < 3:
        return None
    lowest = int(np.argmin(held_out.values))
    after = held_out.values[lowest + 1 :]
    if len(after) == 0 or held_out.values[lowest] <= 0:
        return None
    rise = float(after[-1] / held_out.values[lowest] - 1)
    verdict = graded(rise, OVER_FITTING_WATCH, OVER_FITTING_ACT)
    step = int(held_out.steps[lowest])
    training = history.get(metric).since(step)
    falls, levels = trend(training), start_and_end(history.get(metric))
    if verdict is None or falls is None or not falls.falls or levels is None or levels[1] >= held_out.values[lowest]:
        return None
    if len(after) < 2 and verdict is Verdict.WATCH:
        return None
    return Finding(
        verdict,
        in_set(name, metric),
        step,
        f"held out {held_out.values[lowest]:.2f} at {history.at(step)}, {after[-1]:.2f} now ({rise:+.0%});"
        f" training {falls.change:+.2f} in the same time",
        "the model memorises the training pairs",
        f"stop at {history.at(step)} (load_best_model_at_end, metric_for_best_model {'eval_' + metric});"
        " fewer epochs, or more pairs",
    )


@rule
def language_learned(history: History) -> Finding | None:
    """Find a training NLL (the loss, where it was not logged) that falls, and no held-out one that rises (healthy)."""
    metric = "nll_loss" if "nll_loss" in history.training else "loss"
    series = history.get(metric)
    found, levels = trend(series), start_and_end(series)
    if found is None or levels is None or not found.falls or reversal(series, upward=True):
        return None
    if any(rise > HELD_OUT_WORSE_WATCH for _, _, rise, _ in _held_out_rises(history)):
        return None
    if any(harm(history) is not None for harm in (loss_rising, nll_diverging, forgetting, over_fitting)):
        return None
    return Finding(
        Verdict.HEALTHY,
        metric,
        None,
        f"{levels[0]:.2f} nats per token at the start, {levels[1]:.2f} at the end",
        "the model learns to write the chosen answers",
    )


@rule
def format_not_learned(history: History) -> Finding | None:
    """Find a preference that is learned before the answers can be written."""
    odds, nll = trend(history.get("log_odds_chosen")), start_and_end(history.get("nll_loss"))
    if odds is None or nll is None or not odds.rises or odds.change < MIN_RISE or nll[1] < FORMAT_NLL:
        return None
    return Finding(
        Verdict.ACT if history.last_step >= history.steps_planned / 2 else Verdict.WATCH,
        "nll_loss",
        int(history.get("nll_loss").steps[-1]),
        f"{nll[1]:.2f} nats per token (perplexity {np.exp(nll[1]):,.0f}; it was {nll[0]:.2f}) while the log odds have"
        f" risen by {odds.change:.2f}",
        "the model learns which answer is better before it can write either; it may never have seen this template",
        "fine-tune on the chosen answers first (beta 0), or {beta}; check the chat template",
        {"beta": 0.5},
    )
