"""Rules about the language model: does it get better at the chosen answers, and does it keep what it knew."""

from __future__ import annotations

import numpy as np

from ..findings import Finding, Verdict
from ..history import History, Series
from ..statistics import (
    LEAST_REVERSAL_POINTS,
    MAD_OF_NORMAL,
    MOST_POINTS,
    blocks,
    change_point,
    reversal,
    smooth,
    start_and_end,
    trend,
)
from .preference import LEAST_RISE
from .registry import ANCHOR, graded, highest_learning_rate, rule, softer_beta, times

# The total loss, against its lowest level: an optimiser that works does not lose a twentieth of it for good.
LOSS_RISE_WATCH, LOSS_RISE_ACT = 0.05, 0.2
JUMP_P = 0.01

# Nats a token: exp(0.2) is 22% of perplexity, exp(0.5) 65%.
NLL_RISE_WATCH, NLL_RISE_ACT = 0.2, 0.5

# Held out, against the model before training. An anchor set holds what has nothing to do with the pairs; a tenth of a
# nat (10% of perplexity) is a usual price of alignment, half a nat is a model that has become another.
FORGOTTEN_WATCH, FORGOTTEN_ACT = 0.1, 0.5
HELD_OUT_WORSE_WATCH, HELD_OUT_WORSE_ACT = 0.1, 0.3

# Held-out loss, against its lowest. Early stopping's usual patience is one or two evaluations of any rise.
OVER_FITTING_WATCH, OVER_FITTING_ACT = 0.03, 0.1

# Nats a token. Pretrained models have 1 to 3 on text of the kind they are trained on; 4 (a perplexity of 55) is that of
# a model that cannot write the answers yet.
FORMAT_NLL = 4.0


@rule
def loss_rising(history: History) -> Finding | None:
    """The total loss rises again, or jumps to another level."""
    shown = _rising(history.get("loss")) or _jumped(history.get("loss"))
    if shown is None:
        return None
    step, low, high, how_sure = shown
    verdict = graded(high / low - 1, LOSS_RISE_WATCH, LOSS_RISE_ACT)
    if verdict is None:
        return None
    return Finding(
        "loss_rising",
        verdict,
        "loss",
        step,
        f"{low:.3f} around step {step}, {high:.3f} later ({high / low - 1:+.0%}, {how_sure})",
        "the steps have become too large to go downhill, or the pairs of this part are others than those before",
        f"{times('learning_rate', highest_learning_rate(history), 0.3)}, max_grad_norm 1.0; shuffle the pairs if they"
        " are in some order",
    )


def _rising(loss: Series) -> tuple[int, float, float, str] | None:
    found = reversal(loss, upward=True)
    return (found.step, found.turn, found.end, f"z = {found.z:.1f}") if found and found.turn > 0 else None


def _jumped(loss: Series) -> tuple[int, float, float, str] | None:
    found = change_point(loss)
    if found is None or found.p > JUMP_P or not 0 < found.before < found.after:
        return None
    return found.step, found.before, found.after, f"p = {found.p:.1g}"


@rule
def nll_diverging(history: History) -> Finding | None:
    """The NLL of the chosen answers rises on the pairs that are trained on: again, or above where it began."""
    nll = history.get("nll_loss")
    back = reversal(nll, upward=True)
    shown = (back.step, back.turn, back.end) if back else _above_start(nll)
    verdict = graded(shown[2] - shown[1], NLL_RISE_WATCH, NLL_RISE_ACT) if shown else None
    if shown is None or verdict is None:
        return None
    return Finding(
        "nll_diverging",
        verdict,
        "nll_loss",
        shown[0],
        f"{shown[1]:.2f} nats a token around step {shown[0]}, {shown[2]:.2f} at the end",
        "the model is losing the language it had: the preference is bought with it, or the steps are too large",
        f"{times('learning_rate', highest_learning_rate(history), 0.3)}; {softer_beta(history)}",
    )


def _above_start(nll: Series) -> tuple[int, float, float] | None:
    """First step, first level and last level, where the last is above the first by more than three times the noise."""
    nll = blocks(nll.finite(), MOST_POINTS)
    if len(nll) < LEAST_REVERSAL_POINTS:
        return None
    start, end = float(min(nll.values[0], np.median(nll.values[:3]))), float(np.median(nll.values[-5:]))
    noise = float(np.median(np.abs(nll.values - smooth(nll.values, 5)))) / MAD_OF_NORMAL
    return (int(nll.steps[0]), start, end) if end - start > 3 * noise else None


@rule
def language_learned(history: History) -> Finding | None:
    """The healthy counterpart: the NLL falls, and held out it is no worse than before."""
    found, levels = trend(history.get("nll_loss")), start_and_end(history.get("nll_loss"))
    if found is None or levels is None or not found.falls or reversal(history.get("nll_loss"), upward=True):
        return None
    if any(rise > HELD_OUT_WORSE_WATCH for _, _, rise, _ in _held_out_rises(history)):
        return None
    return Finding(
        "language_learned",
        Verdict.HEALTHY,
        "nll_loss",
        None,
        f"{levels[0]:.2f} nats a token at the start, {levels[1]:.2f} at the end",
        "the model learns to write the chosen answers",
    )


def _held_out_rises(history: History) -> list[tuple[str, Series, float, bool]]:
    """Of each held-out set: its name, its NLL, how much that is above its first value, and whether it is an anchor."""
    rises = []
    for name, found in history.held_out.items():
        series = found.get("nll_loss", found.get("loss"))
        finite = series.finite() if series is not None else None
        if finite is not None and len(finite) >= 2:
            rises.append((name, finite, float(finite.values[-1] - finite.values[0]), name == ANCHOR))
    return rises


@rule
def forgetting(history: History) -> Finding | None:
    """Held-out text, above all an anchor set, has become less likely than it was to the model before training."""
    findings = []
    for name, series, rise, is_anchor in _held_out_rises(history):
        if series.steps[0] > 0.05 * history.steps_planned:  # not the model before training
            continue
        limits = (FORGOTTEN_WATCH, FORGOTTEN_ACT) if is_anchor else (HELD_OUT_WORSE_WATCH, HELD_OUT_WORSE_ACT)
        verdict = graded(rise, *limits)
        if verdict is None:
            continue
        worse = series.steps[series.values > series.values[0] + limits[0]]
        what = f"the anchor set {name!r}" if is_anchor else "the held-out pairs"
        findings.append(
            Finding(
                "forgetting",
                verdict,
                f"eval_{name}_nll_loss" if name else "eval_nll_loss",
                int(worse[0]),
                f"{what}: {series.values[0]:.2f} nats a token before training, {series.values[-1]:.2f} now"
                f" (perplexity x {np.exp(min(rise, 50)):.2f})",
                "the model drifts from what it knew" if is_anchor else "the model has got worse at good answers",
                f"{times('learning_rate', highest_learning_rate(history), 0.3)}; train an adapter instead of all"
                " weights, or mix in pairs of what must be kept",
            )
        )
    return max(findings, key=lambda finding: finding.verdict.severity, default=None)


@rule
def over_fitting(history: History) -> Finding | None:
    """The training loss falls on while the held-out one rises."""
    for name, found in history.held_out.items():
        for metric in ("nll_loss", "loss"):
            series = found.get(metric)
            finding = _parted(history, name, metric, series.finite()) if series is not None else None
            if finding is not None:
                return finding
    return None


def _parted(history: History, name: str, metric: str, held_out: Series) -> Finding | None:
    if len(held_out) < 3 or name == ANCHOR:
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
        "over_fitting",
        verdict,
        f"eval_{name}_{metric}" if name else f"eval_{metric}",
        step,
        f"held out {held_out.values[lowest]:.2f} at step {step}, {after[-1]:.2f} now ({rise:+.0%});"
        f" training {falls.change:+.2f} in the same steps",
        "the model learns the pairs by heart",
        f"stop at step {step} (load_best_model_at_end, metric_for_best_model {'eval_' + metric}); fewer epochs, or more"
        " pairs",
    )


@rule
def format_not_learned(history: History) -> Finding | None:
    """The preference is learned by a model that cannot write the answers yet."""
    odds, nll = trend(history.get("log_odds_chosen")), start_and_end(history.get("nll_loss"))
    if odds is None or nll is None or not odds.rises or odds.change < LEAST_RISE or nll[1] < FORMAT_NLL:
        return None
    return Finding(
        "format_not_learned",
        Verdict.ACT if history.last_step >= history.steps_planned / 2 else Verdict.WATCH,
        "nll_loss",
        int(history.get("nll_loss").steps[-1]),
        f"{nll[1]:.2f} nats a token (perplexity {np.exp(nll[1]):,.0f}; it was {nll[0]:.2f}) while the log odds have"
        f" risen by {odds.change:.2f}",
        "the model learns which answer is better before it can write either; the template may be one it has never seen",
        f"fine-tune on the chosen answers first (beta 0), or {softer_beta(history)}; check the chat template",
    )
