"""Make the probes of a search one after the other, until one has won or nothing can win any more."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..errors import ConfigError
from ..system.run_folder import require_writable_run
from .objective import Decision, Outcome, best_of, decide, is_sound
from .results import AGAIN, PROBES, RESULT_FILE, Evaluation, Result, State, read_result, write_result
from .sampling import is_worth_going_on, next_values
from .space import Space

PATIENCE = 6  # probes in a row that are no better than the best before them: nothing is expected to win any more
REPEATED = 2  # probes that try the winner and the recipe's own settings with another seed


@dataclass(frozen=True)
class Probe:
    """A probe to make."""

    name: str  # of its folder
    values: Mapping[str, Any]
    seed: int


class Watcher(Protocol):
    """Who is told how a search goes."""

    def begin(self, probe: Probe, results: Sequence[Result]) -> None:
        """Take note that a probe begins, after these results."""

    def end(self, result: Result, results: Sequence[Result], was_there: bool) -> None:
        """Take note of the result of a probe; ``was_there`` where it was made before an interruption."""


Train = Callable[[Probe, Path, Callable[[Sequence[Evaluation]], bool]], Result]


@dataclass(frozen=True)
class Limits:
    """How long a search may take."""

    probes: int | None = None  # with that of the recipe's own settings
    seconds: float | None = None  # of all probes together


@dataclass(frozen=True)
class Search:
    """A search.

    Args:
        folder: Where the probes are kept.
        space: What is searched.
        own: The recipe's own values of the settings that are searched.
        seed: Of the recipe, and of what is tried.
        limits: How long it may take.
        train: Makes a probe in a folder; gets a function that says after an evaluation whether to go on.
        watcher: Is told how it goes.
    """

    folder: Path
    space: Space
    own: Mapping[str, Any]
    seed: int
    limits: Limits
    train: Train
    watcher: Watcher

    def run(self) -> Found:
        """Make the probes, those that are there already excepted, and decide."""
        results: list[Result] = []
        while (why := self._why_to_stop(results)) is None:
            values = dict(self.own) if not results else next_values(self.space, results, self.seed)
            if values is None:
                why = f"all {len(results)} combinations were tried"
                break
            results.append(self._probe(Probe(f"{len(results):03d}", values, self.seed), results))
        decision = decide(results)
        repeated: tuple[Result, ...] = ()
        if decision.outcome is Outcome.BETTER and decision.best is not None:
            repeated = tuple(
                self._probe(Probe(f"{one.name}{AGAIN}", one.values, self.seed + 1), results, prune=False)
                for one in (results[0], decision.best)
            )
            decision = decide(results, repeated)
        return Found(tuple(results), repeated, decision, why)

    def _probe(self, probe: Probe, results: Sequence[Result], prune: bool = True) -> Result:
        """Return the result of a probe: the one that is there, or that of a new training."""
        folder = self.folder / PROBES / probe.name
        result = read_result(folder)
        was_there = result is not None
        if result is None:
            _make_empty(folder)
            self.watcher.begin(probe, results)

            def may_go_on(evaluations: Sequence[Evaluation]) -> bool:
                return not prune or not results or is_worth_going_on(results, evaluations)

            result = self.train(probe, folder, may_go_on)
            write_result(folder, result)
        if result.pairs and results and results[0].pairs and result.pairs != results[0].pairs:
            raise ConfigError(
                f"{folder / RESULT_FILE}: was judged on other held-out pairs than the probes before it: the data have"
                " changed; choose another --output"
            )
        self.watcher.end(result, results, was_there)
        return result

    def _why_to_stop(self, results: Sequence[Result]) -> str | None:
        """Return why no further probe is made; ``None`` if one is."""
        if not results:
            return None
        if self.limits.probes is not None and len(results) >= self.limits.probes:
            return f"{len(results)} probes were asked for"
        best = best_of(results)
        since = len(results) if best is None else len(results) - 1 - results.index(best)
        if since >= PATIENCE:
            return (
                f"stopped early: none of {since} probes can win"
                if best is None
                else f"stopped early: none of the last {since} probes was better than the best before them"
            )
        if self.limits.seconds is not None:
            spent = sum(result.seconds for result in results)
            whole = [result.seconds for result in results if result.state is State.FINISHED] or [spent / len(results)]
            if spent + (1 + REPEATED) * sum(whole) / len(whole) > self.limits.seconds:
                return "the budget leaves no time for another probe"
        return None


@dataclass(frozen=True)
class Found:
    """What a search has found."""

    results: tuple[Result, ...]
    repeated: tuple[Result, ...]  # the recipe's own settings and the best ones, with another seed; or nothing
    decision: Decision
    why_stopped: str

    @property
    def lost(self) -> list[Result]:
        """Return the probes that cannot win, but for those that were stopped early."""
        return [result for result in self.results if result.state is not State.PRUNED and not is_sound(result)]


def _make_empty(folder: Path) -> None:
    """Remove what an interrupted probe has left."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    require_writable_run(folder.parent)
    if folder.is_dir():
        shutil.rmtree(folder)
    folder.mkdir()
