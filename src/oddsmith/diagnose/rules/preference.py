"""Judge the preference: whether it is learned, from which features of the answers, and at what cost to them."""

from __future__ import annotations

import numpy as np

from ..findings import Finding, Verdict
from ..history import EMPTY, EPOCH, History, Series
from ..names import in_set
from ..statistics import mean_interval, reversal, start_and_end, trend
from .advice import may_rise
from .rule import ANCHOR, graded, rule

# Nats per token that the chosen answers lose: exp(0.1) is 10% of perplexity, exp(0.3) 35%. ORPO's NLL term exists to
# raise them (arXiv 2403.07691, section 4) and to prevent that both fall ("likelihood displacement", Razin et al.,
# arXiv 2410.08847).
CHOSEN_FALL_WATCH, CHOSEN_FALL_ACT = 0.1, 0.3

# By half of the run, its warm-up included, the log odds rise in every run of the paper's figures.
LEARNED_BY = 0.5
MIN_POINTS = 12
MIN_RISE = 0.2  # in log odds over the whole run: 1.2 times the odds
KNOWN_ACCURACY = 0.9  # there is little left to learn

# Chance, and how near it counts as chance.
CHANCE, CHANCE_REACH = 0.5, 0.1

# Share of pairs in which the untrained model prefers the chosen answer; and the first steps that count as untrained.
AT_ONCE_WATCH, AT_ONCE_ACT = 0.95, 0.99
AT_ONCE_SHARE = 0.05

# Correlation of length gap and margin: its square is the share of the margins' variance that length explains.
LENGTH_WATCH, LENGTH_ACT = 0.6, 0.8
# The correlation before training comes from the data; only a growth beyond it is learned.
LENGTH_GROWTH = 0.1


@rule
def over_penalisation(history: History) -> Finding | None:
    """Find chosen and rejected log-probabilities that both fall while the gap between them grows."""
    training = trend(history.get("logps/chosen"))
    held_out = () if training is not None and training.rises else history.held_out.items()  # rising here: over-fitting
    sources = [("logps/chosen", history.training)]
    sources += [(in_set(name, "logps/chosen"), metrics) for name, metrics in held_out]
    for metric, metrics in sources:
        fall = _fall(metrics.get("logps/chosen", EMPTY), few=metrics is not history.training)
        if fall is None or "logps/rejected" not in metrics:
            continue
        step, lost = fall
        rejected_lost = _change_since(metrics["logps/rejected"], step)
        verdict = graded(lost, CHOSEN_FALL_WATCH, CHOSEN_FALL_ACT)
        if verdict is None or rejected_lost > -lost:  # the rejected answers must fall by more
            continue
        return Finding(
            verdict,
            metric,
            step,
            f"chosen {-lost:+.2f} nats per token since {history.at(step)}, rejected {rejected_lost:+.2f}:"
            f" both fall, and the gap grows by {-rejected_lost - lost:.2f}",
            "the rejected answers are pushed down harder than the chosen ones are raised; probability goes to text that"
            " is in neither",
            "{beta}; or {learning_rate}",
            {"beta": 0.5, "learning_rate": 0.5},
        )
    return None


def _fall(series: Series, few: bool) -> tuple[int, float] | None:
    """Return the step of the highest level and the fall since then; evaluations are ``few`` and hardly noisy."""
    if not few:
        found = reversal(series, upward=False)
        return (found.step, -found.change) if found else None
    finite = series.finite()
    if len(finite) < 3:
        return None
    top = int(np.argmax(finite.values))
    return (int(finite.steps[top]), float(finite.values[top] - finite.values[-1])) if top < len(finite) - 1 else None


def _change_since(series: Series, step: int) -> float:
    """Return the change from a step to the end, between medians of up to five points."""
    finite = series.finite()
    around, count = finite.since(step).values, max(1, min(5, len(finite) // 4))
    return float(np.median(around[-count:]) - np.median(around[:count])) if len(around) else 0.0


@rule
def log_odds_not_rising(history: History) -> Finding | None:
    """Find log odds of chosen against rejected that have not risen by the time they should."""
    odds, accuracy = history.get("log_odds_chosen").finite(), start_and_end(history.get("rewards/accuracies"))
    if len(odds) < MIN_POINTS or history.last_step < LEARNED_BY * history.steps_planned:
        return None
    found = trend(odds)
    if found is None or found.change >= MIN_RISE or (accuracy and accuracy[1] >= KNOWN_ACCURACY):
        return None
    # Larger steps while they stay usual, else a larger beta.
    harder = {"learning_rate": 3.0, "beta": 2.0} if may_rise(history, 3) else {"beta": 2.0}
    return Finding(
        Verdict.ACT if found.high < MIN_RISE else Verdict.WATCH,
        "log_odds_chosen",
        int(odds.steps[0]),
        f"changed by {found.change:+.2f} in {found.end - found.start} {history.unit}"
        f" (95%: {found.low:+.2f} to {found.high:+.2f}); by now it should have risen by more than {MIN_RISE}",
        "the model does not learn to prefer the chosen answers",
        "; if that changes nothing, ".join(f"{{{setting}}}" for setting in harder)
        + "; read a few pairs: can you tell which answer is better?",
        harder,
    )


@rule
def preference_learned(history: History) -> Finding | None:
    """Find log odds that rise (healthy)."""
    odds = history.get("log_odds_chosen")
    found, levels = trend(odds), start_and_end(odds)
    if found is None or levels is None or not found.rises or found.change < MIN_RISE or accuracy_at_chance(history):
        return None
    accuracy = start_and_end(history.get("rewards/accuracies"))
    right = f"; right in {accuracy[0]:.0%} of the pairs, then {accuracy[1]:.0%}" if accuracy else ""
    return Finding(
        Verdict.HEALTHY,
        "log_odds_chosen",
        None,
        f"{levels[0]:.2f} at the start, {levels[1]:.2f} at the end{right}",
        "the model learns to prefer the chosen answers",
    )


@rule
def accuracy_at_chance(history: History) -> Finding | None:
    """Find an accuracy that stays at one half in the second half of the run."""
    if history.last_step < LEARNED_BY * history.steps_planned:
        return None
    shown = _training_at_chance(history) or _held_out_at_chance(history)
    if shown is None:
        return None
    metric, step, verdict, evidence = shown
    return Finding(
        verdict,
        metric,
        step,
        f"{evidence}; chance is 50%",
        "the model cannot tell the answers apart: random labels, answers too alike, or the part that differs is cut off"
        " by max_length",
        "run `oddsmith data check` for conflicting pairs and for pairs identical after truncation; read ten pairs"
        " with the labels covered",
    )


def _training_at_chance(history: History) -> tuple[str, int, Verdict, str] | None:
    accuracy = history.get("rewards/accuracies").finite()
    if (found := _second_half_at_chance(accuracy)) is None:
        return None
    mean, low, high = found
    if abs(mean - CHANCE) > CHANCE_REACH:
        return None
    verdict = Verdict.ACT if high - low <= 2 * CHANCE_REACH else Verdict.WATCH
    step = int(accuracy.steps[len(accuracy) // 2])
    return (
        "rewards/accuracies",
        step,
        verdict,
        f"{mean:.0%} right since {history.at(step)} (95%: {low:.0%} to {high:.0%})",
    )


def _second_half_at_chance(accuracy: Series) -> tuple[float, float, float] | None:
    """Return mean and 95% interval of the second half if chance is inside and nothing rises."""
    if len(accuracy) < MIN_POINTS:
        return None
    mean, low, high = mean_interval(accuracy.values[len(accuracy) // 2 :])
    moving = trend(accuracy)
    return None if not low <= CHANCE <= high or (moving and moving.rises) else (mean, low, high)


def _held_out_at_chance(history: History) -> tuple[str, int, Verdict, str] | None:
    """Look at the held-out pairs, because training pairs that are seen twice are memorised, whatever their labels.

    Held-out pairs are few, and near 50% by chance now and then. It is certain if the first epoch, in which the training
    pairs were new, was at chance as well.
    """
    for name, found in history.held_out.items():
        accuracy = found.get("rewards/accuracies", EMPTY).finite()
        near = np.abs(accuracy.values - CHANCE) <= CHANCE_REACH
        if (
            name == ANCHOR
            or len(accuracy) < 3
            or not near.all()
            or accuracy.values[-1] > accuracy.values[0] + CHANCE_REACH / 2
        ):
            continue
        top, evidence = accuracy.values.max(), f"{accuracy.values[-1]:.0%} of the held-out pairs right"
        first_epoch = _first_epoch_at_chance(history)
        return (
            in_set(name, "rewards/accuracies"),
            int(accuracy.steps[-1]),
            Verdict.ACT if first_epoch else Verdict.WATCH,
            f"{evidence}, and never more than {top:.0%}{first_epoch}",
        )
    return None


def _first_epoch_at_chance(history: History) -> str:
    """Word the second half of the first epoch if it was certainly at chance; empty if not."""
    epoch = history.get(EPOCH).finite()
    first = epoch.where(epoch.values <= 1)
    accuracy = history.get("rewards/accuracies").finite().until(first.steps[-1] if len(first) else -1)
    if (found := _second_half_at_chance(accuracy)) is None:
        return ""
    mean, low, high = found
    if high - low > 2 * CHANCE_REACH:
        return ""
    return f"; of the training pairs, at first sight, {mean:.0%} (95%: {low:.0%} to {high:.0%})"


@rule
def accuracy_at_once(history: History) -> Finding | None:
    """Find an accuracy near 1 before anything was learned."""
    metric, first = "rewards/accuracies", None
    for name, metrics in history.held_out.items():
        before = metrics.get("rewards/accuracies", EMPTY)
        if len(before) and before.steps[0] == 0:
            metric, first = in_set(name, "rewards/accuracies"), float(before.values[0])
            break
    accuracy = history.get("rewards/accuracies").finite()
    if first is None and len(accuracy):
        early = accuracy.until(max(AT_ONCE_SHARE * history.steps_planned, accuracy.steps[min(2, len(accuracy) - 1)]))
        first = float(early.values.mean()) if len(early) >= 3 else None
    verdict = graded(first, AT_ONCE_WATCH, AT_ONCE_ACT) if first is not None else None
    if verdict is None:
        return None
    return Finding(
        verdict,
        metric,
        0,
        f"{first:.1%} of the pairs are right at the start, before anything was learned",
        "the pairs teach nothing: the rejected answers are trivially bad, or something gives them away (a leak)",
        "take rejected answers that the model itself would give; look for marks that only one side has"
        " (`oddsmith data check`)",
    )


@rule
def margin_from_length(history: History) -> Finding | None:
    """Find margins that follow from the lengths of the answers."""
    for name, found in history.held_out.items():
        series = found.get("length_correlation", EMPTY).finite()
        if name == ANCHOR or not len(series) or history.last_step == 0:
            continue
        first, last = series.values[[0, -1]]
        verdict = graded(abs(last), LENGTH_WATCH, LENGTH_ACT)
        learned = len(series) == 1 or abs(last) >= abs(first) + LENGTH_GROWTH
        if verdict is None or not (learned or verdict is Verdict.ACT):
            continue
        longer = "longer" if last > 0 else "shorter"
        return Finding(
            verdict if learned else Verdict.WATCH,
            in_set(name, "length_correlation"),
            int(series.steps[-1]),
            f"correlation of length gap and margin {last:+.2f} (at the first evaluation {first:+.2f}):"
            f" length explains {last**2:.0%} of the margins",
            f"the model has largely learned that the {longer} answer is the better one",
            "balance the lengths: leave out pairs whose chosen and rejected answers differ by more than half in length,"
            " until the mean gap is near 0",
        )
    return None
