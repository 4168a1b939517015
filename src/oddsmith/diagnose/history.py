"""Collect the metrics of a run over its steps, under our names, from the logs of any trainer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..system.run_folder import MAX_STEP
from .names import held_out_name, known_name
from .records import cell_number

MAX_LOGP = -1e-6  # of log(p / (1 - p)), p the mean token probability; the loss has the same bound
MIN_MEAN_LOGP = -50.0  # lower ones are sums over tokens, not means
EPOCH = "epoch"  # logged beside the metrics, and not a result


@dataclass(frozen=True)
class Series:
    """One metric over the run."""

    steps: np.ndarray  # [P] optimizer steps, ascending
    values: np.ndarray  # [P] NaN where the source has NaN, or ``null`` for a number that JSON cannot hold

    def __len__(self) -> int:
        return len(self.steps)

    def where(self, mask: np.ndarray) -> Series:
        """Return the points that a mask selects."""
        return Series(self.steps[mask], self.values[mask])

    def finite(self) -> Series:
        """Return the points with finite values."""
        return self.where(np.isfinite(self.values))

    def since(self, step: float) -> Series:
        """Return the points from a step on."""
        return self.where(self.steps >= step)

    def until(self, step: float) -> Series:
        """Return the points up to and including a step."""
        return self.where(self.steps <= step)


EMPTY = Series(np.zeros(0), np.zeros(0))


@dataclass
class History:
    """The metrics and settings of a run that the rules judge."""

    source: str = ""  # where it was read, for messages
    training: dict[str, Series] = field(default_factory=dict)  # metric -> series
    held_out: dict[str, dict[str, Series]] = field(
        default_factory=dict
    )  # set ("" for the only one) -> metric -> series
    settings: dict[str, Any] = field(default_factory=dict)  # those of readers.USED_SETTINGS that are known
    skipped: int = 0  # lines without a metric
    unread: int = 0  # of them, those that look as if they had one
    unread_example: str = ""  # the first of these
    repeated: int = 0  # log lines that were left out, because a later attempt repeats their steps
    finished: bool = True  # whether the run is known to have ended
    is_excerpt: bool = False  # it may be a part of a run: a log or table, as it was pasted or exported
    unit: str = "steps"  # what is called steps here: "epochs" or "log lines" where the source has no steps

    def get(self, name: str) -> Series:
        """Return a training metric; an empty series if it was not logged."""
        return self.training.get(name, EMPTY)

    def setting(self, name: str) -> float | None:
        """Return a setting if it is a finite number."""
        number = as_number(self.settings.get(name))
        return number if number is not None and np.isfinite(number) else None

    def at(self, step: float) -> str:
        """Word a place: ``step 90``, or ``log line 9`` where the source has no steps."""
        return f"{self.unit.removesuffix('s')} {int(step)}"

    @property
    def log_lines(self) -> int:
        """Return how often the training metrics were logged."""
        return max((len(series) for name, series in self.training.items() if name != EPOCH), default=0)

    @property
    def evaluations(self) -> int:
        """Return how often the held-out pairs were evaluated."""
        steps = [set(one.steps.tolist()) for metrics in self.held_out.values() for one in metrics.values()]
        return len(set().union(*steps))

    @property
    def is_empty(self) -> bool:
        """Return whether there is no metric."""
        return self.training.keys() <= {EPOCH} and not self.held_out

    @property
    def last_step(self) -> int:
        """Return the last step with a logged metric."""
        groups = (self.training, *self.held_out.values())
        return int(max((series.steps[-1] for group in groups for series in group.values() if len(series)), default=0))

    @property
    def steps_planned(self) -> int:
        """Return the steps of the whole run if they are known, else the last step."""
        planned = self.setting("max_steps")
        return int(planned) if planned is not None and planned > 0 else self.last_step

    @property
    def trains_adapter(self) -> bool | None:
        """Return whether an adapter is trained; ``None`` if the source does not say."""
        if "adapter" in self.settings:
            return bool(self.settings["adapter"])
        trained, total = self.setting("trainable_parameters"), self.setting("parameters")
        return trained < total / 2 if trained and total else None


class HistoryBuilder:
    """Collects metrics in the order they were logged. If a step was logged twice, the last values count."""

    def __init__(self, source: str = ""):
        self.history = History(source)
        self._training: dict[str, dict[int, float]] = {}
        self._held_out: dict[str, dict[str, dict[int, float]]] = {}

    def add(self, step: int, values: Mapping[str, Any], null_is_nan: bool = False, of_evaluation: bool = False) -> None:
        """Add the metrics among values that were logged at a step; nothing for an impossible step.

        ``null_is_nan`` says that ``None`` stands for NaN or infinity, ``of_evaluation`` that the metrics are those of
        an evaluation, whatever their prefix.
        """
        if not 0 <= step <= MAX_STEP:
            return
        for raw, value in values.items():
            number = as_number(value, null_is_nan)
            if number is None:
                continue
            name = known_name(str(raw))
            is_held_out = name is None or (of_evaluation and name != EPOCH)
            if is_held_out and (place := held_out_name(str(raw), of_evaluation)) is not None:
                self._held_out.setdefault(place[0], {}).setdefault(place[1], {})[step] = number
            elif name is not None:
                self._training.setdefault(name, {})[step] = number

    def forget(self) -> None:
        """Drop an older run from the same file: everything but evaluations at step 0, which precede the new start."""
        self._training.clear()
        for metrics in self._held_out.values():
            for name, points in metrics.items():
                metrics[name] = {step: value for step, value in points.items() if step == 0}

    def cut_back(self, step: int) -> None:
        """Drop everything after a step, because a resumed run repeats it."""
        for metrics in (self._training, *self._held_out.values()):
            for name, points in metrics.items():
                metrics[name] = {at: value for at, value in points.items() if at <= step}

    def build(self) -> History:
        """Return the history, with beta, log odds and NLL derived where they were not logged."""
        history = self.history
        history.training = _as_series(self._training)
        history.held_out = {name: _as_series(metrics) for name, metrics in self._held_out.items()}
        groups = (history.training, *history.held_out.values())
        with np.errstate(all="ignore"):  # logs may hold anything; an overflow is not finite, and rules look for that
            for metrics in groups:
                _settle_accuracy(metrics)
                _settle_log_odds(metrics)
            if history.setting("beta") is None and (beta := _beta_of(history.training)) is not None:
                history.settings["beta"] = beta
            for metrics in groups:
                _derive(metrics, history.setting("beta"))
        return history


def _as_series(metrics: Mapping[str, Mapping[int, float]]) -> dict[str, Series]:
    made = {}
    for name, points in metrics.items():
        steps = sorted(points)
        if steps:
            made[name] = Series(np.array(steps, dtype=float), np.array([points[step] for step in steps], dtype=float))
    return made


def as_number(value: Any, null_is_nan: bool = False) -> float | None:
    """Return a number, also one written as text (``"nan"``, ``"2e-05"``, ``"1,000"``); ``None`` for anything else."""
    if type(value) is float:  # nearly always
        return value
    if value is None:
        return np.nan if null_is_nan else None
    if isinstance(value, bool | bytes) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except OverflowError:
        return None
    except ValueError:
        return cell_number(str(value))


def _settle_accuracy(metrics: dict[str, Series]) -> None:
    """Make a share of an accuracy in percent."""
    accuracy = metrics.get("rewards/accuracies", EMPTY)
    if 1 < np.nanmax(accuracy.values, initial=0.0) <= 100:
        metrics["rewards/accuracies"] = Series(accuracy.steps, accuracy.values / 100)


def _settle_log_odds(metrics: dict[str, Series]) -> None:
    """Move the log of the odds ratio to ``log_odds_chosen``, where a trainer logged it as ``log_odds_ratio``.

    In TRL ``log_odds_chosen`` is the log of the odds ratio, and ``log_odds_ratio`` its log-sigmoid, which is never
    above 0. So a value above 0 decides which of them was logged; without one, the log-probabilities do.
    """
    ratio, odds = metrics.get("log_odds_ratio"), metrics.get("log_odds_chosen")
    if ratio is None:
        return
    is_odds = np.nanmax(ratio.values, initial=-np.inf) > 1e-6
    if not is_odds and odds is None and (shared := _at_shared_steps(ratio, _odds_of_means(metrics))) is not None:
        _, of_ratio, of_expected = shared
        usable = np.isfinite(of_ratio) & np.isfinite(of_expected)
        to_odds = np.abs(of_ratio - of_expected)[usable]
        to_sigmoid = np.abs(of_ratio + np.logaddexp(0, -of_expected))[usable]
        is_odds = len(to_odds) > 0 and bool(to_odds.mean() < to_sigmoid.mean() / 2)
    if is_odds:
        metrics["log_odds_chosen"] = ratio
        if odds is not None and np.nanmax(odds.values, initial=-np.inf) <= 1e-6:
            metrics["log_odds_ratio"] = odds
        else:
            del metrics["log_odds_ratio"]


def _odds_of_means(metrics: Mapping[str, Series]) -> Series | None:
    """Return the log of the odds ratio of the mean log-probabilities, which is near the mean of the log odds."""
    shared = _at_shared_steps(metrics.get("logps/chosen"), metrics.get("logps/rejected"))
    if shared is None:
        return None
    steps, chosen, rejected = shared
    if np.nanmin(np.concatenate([chosen, rejected]), initial=0.0) < MIN_MEAN_LOGP:
        return None
    chosen, rejected = np.minimum(chosen, MAX_LOGP), np.minimum(rejected, MAX_LOGP)
    return Series(steps, chosen - np.log(-np.expm1(chosen)) - rejected + np.log(-np.expm1(rejected)))


def _at_shared_steps(first: Series | None, second: Series | None) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Return the steps that two series share, and the values of both there; ``None`` if there are none."""
    if first is None or second is None:
        return None
    steps, at_first, at_second = np.intersect1d(first.steps, second.steps, return_indices=True)
    return (steps, first.values[at_first], second.values[at_second]) if len(steps) else None


def _beta_of(metrics: Mapping[str, Series]) -> float | None:
    """Return beta, since ``rewards/chosen`` = beta * ``logps/chosen``."""
    shared = _at_shared_steps(metrics.get("rewards/chosen"), metrics.get("logps/chosen"))
    if shared is None:
        return None
    _, rewards, logps = shared
    usable = np.isfinite(rewards) & np.isfinite(logps) & (logps != 0)
    return float(f"{np.median(rewards[usable] / logps[usable]):.3g}") if usable.any() else None


def _derive(metrics: dict[str, Series], beta: float | None) -> None:
    """Add the metrics that were not logged but follow from others."""
    if "or_loss" not in metrics and "log_odds_ratio" in metrics:
        metrics["or_loss"] = Series(metrics["log_odds_ratio"].steps, -metrics["log_odds_ratio"].values)
    if beta:
        for side in ("chosen", "rejected"):
            if f"logps/{side}" not in metrics and f"rewards/{side}" in metrics:
                rewards = metrics[f"rewards/{side}"]
                metrics[f"logps/{side}"] = Series(rewards.steps, rewards.values / beta)
        shared = _at_shared_steps(metrics.get("loss"), metrics.get("or_loss"))
        if "nll_loss" not in metrics and shared is not None:
            steps, loss, or_loss = shared
            metrics["nll_loss"] = Series(steps, loss - beta * or_loss)
    if "log_odds_chosen" not in metrics and (odds := _odds_of_means(metrics)) is not None:
        metrics["log_odds_chosen"] = odds
