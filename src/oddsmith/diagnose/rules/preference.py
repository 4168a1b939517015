"""Rules about the preference: is it learned, what is it learned from, and what does it cost."""

from __future__ import annotations

import numpy as np

from ..findings import Finding, Verdict
from ..history import EPOCH, History, Series
from ..statistics import mean_interval, reversal, start_and_end, trend
from .optimisation import usual_range
from .registry import ANCHOR, graded, highest_learning_rate, rule, softer_beta, times

# Nats a token that the chosen answers lose: exp(0.1) is 10% of perplexity, exp(0.3) 35%. ORPO's NLL term is there to
# raise them (arXiv 2403.07691, section 4); both falling is what it was made to prevent ("likelihood displacement",
# Razin et al., arXiv 2410.08847).
CHOSEN_FALL_WATCH, CHOSEN_FALL_ACT = 0.1, 0.3

# By half of the run, its warm-up included, the log odds rise in every run of the paper's figures.
LEARNED_BY = 0.5
LEAST_POINTS = 12
# A rise of less than this in the whole run is none: 0.2 in log odds is 1.2 times the odds.
LEAST_RISE = 0.2
# What need not be learned any more.
KNOWN_ACCURACY = 0.9

# Chance, and how near it counts as chance.
CHANCE, CHANCE_REACH = 0.5, 0.1

# Share of pairs in which the model that has learned nothing yet prefers the chosen answer.
AT_ONCE_WATCH, AT_ONCE_ACT = 0.95, 0.99
AT_ONCE_SHARE = 0.05

# Correlation of length gap and margin: its square is the share of the margins' variance that length explains.
LENGTH_WATCH, LENGTH_ACT = 0.6, 0.8
# A correlation that was there before training is the data's, not learned.
LENGTH_GROWTH = 0.1


@rule
def over_penalisation(history: History) -> Finding | None:
    """Chosen and rejected log-probabilities both fall while the gap between them grows."""
    taught = trend(history.get("logps/chosen"))
    held_out = () if taught is not None and taught.rises else history.held_out.values()  # rising here: over-fitting
    for place, found in (("", history.training), *(("eval_", found) for found in held_out)):
        chosen, rejected = found.get("logps/chosen"), found.get("logps/rejected")
        if chosen is None or rejected is None:
            continue
        fall = _fall(chosen, few=bool(place))
        if fall is None:
            continue
        step, lost = fall
        rejected_lost = _change_since(rejected, step)
        verdict = graded(lost, CHOSEN_FALL_WATCH, CHOSEN_FALL_ACT)
        if verdict is None or rejected_lost > -lost:  # the rejected ones have to fall by more
            continue
        return Finding(
            "over_penalisation",
            verdict,
            f"{place}logps/chosen",
            step,
            f"chosen {-lost:+.2f} nats a token since step {step}, rejected {rejected_lost:+.2f}:"
            f" both fall, and the gap grows by {-rejected_lost - lost:.2f}",
            "the rejected answers are pushed away harder than the chosen ones are taught; probability goes to text that"
            " is in neither",
            f"{softer_beta(history)}; or {times('learning_rate', highest_learning_rate(history), 0.5)}",
        )
    return None


def _fall(series: Series, few: bool) -> tuple[int, float] | None:
    """Since when and by how much a series falls from its highest level; evaluations are few and hardly noisy."""
    if not few:
        found = reversal(series, upward=False)
        return (found.step, -found.change) if found else None
    finite = series.finite()
    if len(finite) < 3:
        return None
    top = int(np.argmax(finite.values))
    return (int(finite.steps[top]), float(finite.values[top] - finite.values[-1])) if top < len(finite) - 1 else None


def _change_since(series: Series, step: int) -> float:
    """From the level around a step to the level at the end: medians of up to five points."""
    finite = series.finite()
    around, count = finite.since(step).values, max(1, min(5, len(finite) // 4))
    return float(np.median(around[-count:]) - np.median(around[:count])) if len(around) else 0.0


@rule
def log_odds_not_rising(history: History) -> Finding | None:
    """The log odds of chosen against rejected do not rise by the time they should."""
    odds, accuracy = history.get("log_odds_chosen").finite(), start_and_end(history.get("rewards/accuracies"))
    if len(odds) < LEAST_POINTS or history.last_step < LEARNED_BY * history.steps_planned:
        return None
    found = trend(odds)
    if found is None or found.change >= LEAST_RISE or (accuracy and accuracy[1] >= KNOWN_ACCURACY):
        return None
    return Finding(
        "log_odds_not_rising",
        Verdict.ACT if found.high < LEAST_RISE else Verdict.WATCH,
        "log_odds_chosen",
        int(odds.steps[0]),
        f"changed by {found.change:+.2f} in {found.end - found.start} steps"
        f" (95%: {found.low:+.2f} to {found.high:+.2f}); by now it should have risen by more than {LEAST_RISE}",
        "the model does not learn to prefer the chosen answers",
        f"{_harder(history)}; read a few pairs: can you tell which answer is better?",
    )


def _harder(history: History) -> str:
    """What to do so that more is learned: larger steps while they stay usual, then a larger beta."""
    rate, beta = highest_learning_rate(history), times("beta", history.setting("beta"), 2)
    if rate is not None and 3 * rate > usual_range(history)[1]:
        return beta
    return f"{times('learning_rate', rate, 3)}; if that changes nothing, {beta}"


@rule
def preference_learned(history: History) -> Finding | None:
    """The healthy counterpart: the log odds rise."""
    odds = history.get("log_odds_chosen")
    found, levels = trend(odds), start_and_end(odds)
    if found is None or levels is None or not found.rises or found.change < LEAST_RISE:
        return None
    accuracy = start_and_end(history.get("rewards/accuracies"))
    right = f"; right in {accuracy[0]:.0%} of the pairs, then {accuracy[1]:.0%}" if accuracy else ""
    return Finding(
        "preference_learned",
        Verdict.HEALTHY,
        "log_odds_chosen",
        None,
        f"{levels[0]:.2f} at the start, {levels[1]:.2f} at the end{right}",
        "the model learns to prefer the chosen answers",
    )


@rule
def accuracy_at_chance(history: History) -> Finding | None:
    """Half of the pairs right, and no more in the second half of the run."""
    if history.last_step < LEARNED_BY * history.steps_planned:
        return None
    shown = _training_at_chance(history) or _held_out_at_chance(history)
    if shown is None:
        return None
    metric, step, verdict, evidence = shown
    return Finding(
        "accuracy_at_chance",
        verdict,
        metric,
        step,
        f"{evidence}; a coin gets 50%",
        "there is nothing in the pairs that the model can tell apart: labels at random, answers too alike, or the part"
        " that differs is cut off by max_length",
        "run `oddsmith data check` for conflicting pairs and for what is identical after truncation; read ten pairs"
        " with the labels covered",
    )


def _training_at_chance(history: History) -> tuple[str, int, Verdict, str] | None:
    accuracy = history.get("rewards/accuracies").finite()
    if len(accuracy) < LEAST_POINTS:
        return None
    late = accuracy.since(accuracy.steps[len(accuracy) // 2])
    mean, low, high = mean_interval(late.values)
    moving = trend(accuracy)
    if not low <= CHANCE <= high or abs(mean - CHANCE) > CHANCE_REACH or (moving and moving.rises):
        return None
    verdict = Verdict.ACT if high - low <= 2 * CHANCE_REACH else Verdict.WATCH
    since = int(late.steps[0])
    said = f"{mean:.0%} right since step {since} (95%: {low:.0%} to {high:.0%})"
    return "rewards/accuracies", since, verdict, said


def _held_out_at_chance(history: History) -> tuple[str, int, Verdict, str] | None:
    """Pairs that are seen twice are learned by heart, whatever their labels; held-out ones are not.

    They are few, and by chance near 50% now and then. What makes it certain is the first epoch, in which the training
    pairs were met for the first time, too.
    """
    for name, found in history.held_out.items():
        if name == ANCHOR or "rewards/accuracies" not in found:
            continue
        accuracy = found["rewards/accuracies"].finite()
        near = np.abs(accuracy.values - CHANCE) <= CHANCE_REACH
        if len(accuracy) >= 3 and near.all() and accuracy.values[-1] <= accuracy.values[0] + CHANCE_REACH / 2:
            top = accuracy.values.max()
            said = f"{accuracy.values[-1]:.0%} of the held-out pairs right, and never more than {top:.0%}"
            metric = f"eval_{name}_rewards/accuracies" if name else "eval_rewards/accuracies"
            fresh = _first_epoch_at_chance(history)
            verdict = Verdict.ACT if fresh else Verdict.WATCH
            return metric, int(accuracy.steps[-1]), verdict, f"{said}{fresh}"
    return None


def _first_epoch_at_chance(history: History) -> str:
    """What there is to say of the second half of the first epoch, if it was at chance for certain; empty if not."""
    epoch = history.get(EPOCH).finite()
    first = epoch.where(epoch.values <= 1)
    accuracy = history.get("rewards/accuracies").finite().until(first.steps[-1] if len(first) else -1)
    if len(accuracy) < LEAST_POINTS:
        return ""
    mean, low, high = mean_interval(accuracy.values[len(accuracy) // 2 :])
    moving = trend(accuracy)
    if not low <= CHANCE <= high or high - low > 2 * CHANCE_REACH or (moving and moving.rises):
        return ""
    return f"; of the training pairs, at first sight, {mean:.0%} (95%: {low:.0%} to {high:.0%})"


@rule
def accuracy_at_once(history: History) -> Finding | None:
    """Nearly every pair is right before anything was learned."""
    name, first = "rewards/accuracies", None
    for found in history.held_out.values():
        before = found.get(name)
        if before is not None and len(before) and before.steps[0] == 0:
            name, first = "eval_rewards/accuracies", float(before.values[0])
            break
    accuracy = history.get("rewards/accuracies").finite()
    if first is None and len(accuracy):
        early = accuracy.until(max(AT_ONCE_SHARE * history.steps_planned, accuracy.steps[min(2, len(accuracy) - 1)]))
        first = float(early.values.mean()) if len(early) >= 3 else None
    verdict = graded(first, AT_ONCE_WATCH, AT_ONCE_ACT) if first is not None else None
    if verdict is None:
        return None
    return Finding(
        "accuracy_at_once",
        verdict,
        name,
        0,
        f"{first:.1%} of the pairs are right at the start, where nothing has been learned",
        "the pairs teach nothing: the rejected answers are trivially bad, or something gives them away (a leak)",
        "take rejected answers that the model itself would give; look for marks that only one side has"
        " (`oddsmith data check`)",
    )


@rule
def margin_from_length(history: History) -> Finding | None:
    """The margin of a pair follows from the lengths of its answers."""
    for name, found in history.held_out.items():
        series = found.get("length_correlation")
        if name == ANCHOR or series is None or not len(series.finite()) or history.last_step == 0:
            continue
        first, last = series.finite().values[[0, -1]]
        verdict = graded(abs(last), LENGTH_WATCH, LENGTH_ACT)
        learned = len(series) == 1 or abs(last) >= abs(first) + LENGTH_GROWTH
        if verdict is None or not (learned or verdict is Verdict.ACT):
            continue
        longer = "longer" if last > 0 else "shorter"
        return Finding(
            "margin_from_length",
            verdict if learned else Verdict.WATCH,
            "eval_length_correlation",
            int(series.finite().steps[-1]),
            f"correlation of length gap and margin {last:+.2f} (at the first evaluation {first:+.2f}):"
            f" length explains {last**2:.0%} of the margins",
            f"what the model has learned is largely that the {longer} answer is the better one",
            "balance the lengths: leave out pairs whose chosen and rejected answers differ by more than half in length,"
            " until the mean gap is near 0",
        )
    return None
