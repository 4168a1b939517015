"""What was measured while a run went on: for each quantity its steps and values, under one name whoever logged it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .names import held_out_name, known_name

# Sides of the log odds log(p / (1 - p)), p the mean token probability; p is kept below 1 as the loss keeps it.
HIGHEST_LOGP = -1e-6
HIGHEST_STEP = 10**12  # what is above is no step
EPOCH = "epoch"  # says when, not what


@dataclass(frozen=True)
class Series:
    """One quantity over the run.

    Args:
        steps: Optimizer steps, ascending.
        values: As many values; NaN where the source said so, or had no number that JSON knows.
    """

    steps: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.steps)

    def where(self, mask: np.ndarray) -> Series:
        """The points that a mask keeps."""
        return Series(self.steps[mask], self.values[mask])

    def finite(self) -> Series:
        """The points that are numbers."""
        return self.where(np.isfinite(self.values))

    def since(self, step: float) -> Series:
        """From a step on."""
        return self.where(self.steps >= step)

    def until(self, step: float) -> Series:
        """Up to a step, itself included."""
        return self.where(self.steps <= step)


EMPTY = Series(np.zeros(0), np.zeros(0))


@dataclass
class History:
    """A run as the rules see it.

    Args:
        source: Where it was read, for messages.
        training: Metric -> series, in the names of ``docs/metrics.md``.
        held_out: Name of an evaluation set (``""`` for the only one) -> metric -> series.
        settings: What is known of the settings: ``beta``, ``learning_rate``, ``max_steps``, ``warmup_steps``,
            ``parameters``, ``trainable_parameters``, ``adapter``.
        skipped: Lines that held nothing readable.
        steps_are_lines: Whether the source named no steps, so that log lines are counted instead.
        finished: Whether the run came to its end, as far as that is known.
    """

    source: str = ""
    training: dict[str, Series] = field(default_factory=dict)
    held_out: dict[str, dict[str, Series]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    skipped: int = 0
    finished: bool = True
    steps_are_lines: bool = False

    def get(self, name: str) -> Series:
        """A training metric; empty where it was not logged."""
        return self.training.get(name, EMPTY)

    def setting(self, name: str) -> float | None:
        """A setting that is a finite number."""
        number = as_number(self.settings.get(name))
        return number if number is not None and np.isfinite(number) else None

    @property
    def is_empty(self) -> bool:
        """Whether no metric was found."""
        return self.training.keys() <= {EPOCH} and not self.held_out

    @property
    def last_step(self) -> int:
        """The last step that anything was logged of."""
        everything = [*self.training.values(), *(s for found in self.held_out.values() for s in found.values())]
        return int(max((series.steps[-1] for series in everything if len(series)), default=0))

    @property
    def steps_planned(self) -> int:
        """Steps of the whole run, if they are known; else those that were done."""
        planned = self.setting("max_steps")
        return int(planned) if planned is not None and planned > 0 else self.last_step

    @property
    def trains_adapter(self) -> bool | None:
        """Whether an adapter is trained; ``None`` where nothing tells."""
        if "adapter" in self.settings:
            return bool(self.settings["adapter"])
        trained, total = self.setting("trainable_parameters"), self.setting("parameters")
        return trained < total / 2 if trained and total else None


class HistoryBuilder:
    """Collects what readers find, line by line. Of a step that was logged twice, as after a resume, the last counts."""

    def __init__(self, source: str = ""):
        self.history = History(source)
        self._training: dict[str, dict[int, float]] = {}
        self._held_out: dict[str, dict[str, dict[int, float]]] = {}

    def add(self, step: int, values: Mapping[str, Any], null_is_nan: bool = False) -> bool:
        """Add what was logged at a step.

        Args:
            step: The step.
            values: Names and numbers as the source has them; what is no metric is passed over.
            null_is_nan: Whether ``None`` stands for a number that is not finite, or for nothing.

        Returns:
            Whether there was a metric among them.
        """
        found = False
        if not 0 <= step <= HIGHEST_STEP:
            return False
        for raw, value in values.items():
            number = as_number(value, null_is_nan)
            if number is None:
                continue
            if (name := known_name(str(raw))) is not None:
                self._training.setdefault(name, {})[step] = number
            elif (place := held_out_name(str(raw))) is not None:
                self._held_out.setdefault(place[0], {}).setdefault(place[1], {})[step] = number
            else:
                continue
            found |= name != EPOCH
        return found

    def forget(self) -> None:
        """A new run begins in the same file: what is there belongs to another, but for evaluations at step 0."""
        self._training.clear()
        for found in self._held_out.values():
            for metric, points in found.items():
                found[metric] = {step: value for step, value in points.items() if step == 0}

    def cut_back(self, step: int) -> None:
        """A run goes on from a step: what comes after it is done again."""
        for found in (self._training, *self._held_out.values()):
            for metric, points in found.items():
                found[metric] = {at: value for at, value in points.items() if at <= step}

    def build(self) -> History:
        """The history, with what follows from what was logged: beta, log odds, NLL."""
        history = self.history
        history.training = _as_series(self._training)
        history.held_out = {name: _as_series(found) for name, found in self._held_out.items()}
        with np.errstate(all="ignore"):  # logs may hold anything; what overflows is not finite, and rules look for that
            for found in (history.training, *history.held_out.values()):
                settle_log_odds(found)
            if history.setting("beta") is None and (beta := _beta_of(history.training)) is not None:
                history.settings["beta"] = beta
            for found in (history.training, *history.held_out.values()):
                derive(found, history.setting("beta"))
        return history


def _as_series(found: Mapping[str, Mapping[int, float]]) -> dict[str, Series]:
    made = {}
    for name, points in found.items():
        steps = sorted(points)
        if not points:
            continue
        made[name] = Series(np.array(steps, dtype=float), np.array([points[step] for step in steps], dtype=float))
    return made


def as_number(value: Any, null_is_nan: bool = False) -> float | None:
    """A number, also one that was written as text (``"nan"``, ``"2e-05"``); ``None`` for anything else."""
    if value is None:
        return np.nan if null_is_nan else None
    if isinstance(value, bool | bytes) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def settle_log_odds(found: dict[str, Series]) -> None:
    """Put the two log-odds quantities under their right names.

    ``log_odds_chosen`` is the log of the odds ratio, of either sign; ``log_odds_ratio`` is its log-sigmoid, never above
    0 (TRL's names). Some trainers call the first what TRL calls the second. A value above 0 tells; where there is none,
    the log-probabilities do.
    """
    ratio, odds = found.get("log_odds_ratio"), found.get("log_odds_chosen")
    if ratio is None:
        return
    positive = np.nanmax(ratio.values, initial=-np.inf) > 1e-6
    if not positive and odds is None and (expected := _odds_of_means(found)) is not None:
        _, mine, theirs = np.intersect1d(ratio.steps, expected.steps, return_indices=True)
        of_ratio, of_expected = ratio.values[mine], expected.values[theirs]
        usable = np.isfinite(of_ratio) & np.isfinite(of_expected)
        to_odds = np.abs(of_ratio - of_expected)[usable]
        to_sigmoid = np.abs(of_ratio + np.logaddexp(0, -of_expected))[usable]
        positive = len(to_odds) > 0 and bool(to_odds.mean() < to_sigmoid.mean() / 2)
    if positive:
        found["log_odds_chosen"] = ratio
        if odds is not None and np.nanmax(odds.values, initial=-np.inf) <= 1e-6:
            found["log_odds_ratio"] = odds
        else:
            del found["log_odds_ratio"]


def _odds_of_means(found: Mapping[str, Series]) -> Series | None:
    """Log of the odds ratio of the mean log-probabilities: near the mean of the log odds."""
    pair = _together(found, ("logps/chosen", "logps/rejected"))
    if pair is None:
        return None
    steps, (chosen, rejected) = pair
    if np.nanmin(np.concatenate([chosen, rejected]), initial=0.0) < -50:  # sums over tokens, not means
        return None
    chosen, rejected = np.minimum(chosen, HIGHEST_LOGP), np.minimum(rejected, HIGHEST_LOGP)
    return Series(steps, chosen - np.log(-np.expm1(chosen)) - rejected + np.log(-np.expm1(rejected)))


def _together(found: Mapping[str, Series], names: Iterable[str]) -> tuple[np.ndarray, list[np.ndarray]] | None:
    """Several metrics at the steps they share; ``None`` where there is no such step."""
    names = list(names)
    if any(name not in found for name in names):
        return None
    steps = found[names[0]].steps
    for name in names[1:]:
        steps = np.intersect1d(steps, found[name].steps)
    if len(steps) == 0:
        return None
    return steps, [found[name].values[np.isin(found[name].steps, steps)] for name in names]


def _beta_of(found: Mapping[str, Series]) -> float | None:
    """beta, since ``rewards/chosen`` = beta * ``logps/chosen``."""
    pair = _together(found, ("rewards/chosen", "logps/chosen"))
    if pair is None:
        return None
    rewards, logps = pair[1]
    usable = np.isfinite(rewards) & np.isfinite(logps) & (logps != 0)
    return float(f"{np.median(rewards[usable] / logps[usable]):.3g}") if usable.any() else None


def derive(found: dict[str, Series], beta: float | None) -> None:
    """Fill in what was not logged and follows from what was."""
    if "or_loss" not in found and "log_odds_ratio" in found:
        found["or_loss"] = Series(found["log_odds_ratio"].steps, -found["log_odds_ratio"].values)
    if beta:
        for side in ("chosen", "rejected"):
            if f"logps/{side}" not in found and f"rewards/{side}" in found:
                rewards = found[f"rewards/{side}"]
                found[f"logps/{side}"] = Series(rewards.steps, rewards.values / beta)
        if "nll_loss" not in found and (both := _together(found, ("loss", "or_loss"))) is not None:
            found["nll_loss"] = Series(both[0], both[1][0] - beta * both[1][1])
    if "log_odds_chosen" not in found and (odds := _odds_of_means(found)) is not None:
        found["log_odds_chosen"] = odds
    if (pair := _together(found, ("logps/chosen", "logps/rejected"))) is not None:
        found["logps/gap"] = Series(pair[0], pair[1][0] - pair[1][1])
