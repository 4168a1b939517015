"""Choose what to try next, and which probes to stop, with Optuna.

No state of Optuna's is kept on the disk. The results of the probes are, because their paired intervals need them, and
a study is made of them each time: so what is tried next depends on them and the seed alone, and an interrupted search
goes on as if it had not been. (Optuna's own storages keep trials, not the state of a sampler.)

- Sampler: ``TPESampler`` (a tree of Parzen estimators), at random for the first ``RANDOM_PROBES``.
- Pruner: ``MedianPruner``: a probe is stopped whose best cost so far is above the median of the finished ones at the
  same step, from the second evaluation on, once ``RANDOM_PROBES`` have finished.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ..errors import MissingExtraError
from .objective import cost_of, is_sound
from .results import Evaluation, Result
from .space import Range, Space, size_of

if TYPE_CHECKING:
    import optuna

RANDOM_PROBES = 4  # with the recipe's own settings
ATTEMPTS = 50  # to draw settings that were not tried yet
SEEDS_APART = 1_000  # between the seeds of two probes, more than attempts
MOST_COMBINATIONS = 10_000  # of a finite space, to look for one that is left


def require_optuna() -> None:
    """Raise ``MissingExtraError`` where Optuna is not installed. Importing it takes a second, and is left for later."""
    if find_spec("optuna") is None:
        raise MissingExtraError("oddsmith tune", "tune")


def next_values(space: Space, results: Sequence[Result], seed: int) -> dict[str, Any] | None:
    """Return what to try next: settings that no probe has had; ``None`` where none are left.

    Args:
        space: What is searched.
        results: The probes so far, in their order.
        seed: Of the search.

    Returns:
        A value for each setting of the space.
    """
    tried = {_key(space, result.values) for result in results}
    size = size_of(space)
    for attempt in range(ATTEMPTS):
        study = _study(space, results, seed + SEEDS_APART * len(results) + attempt)
        trial = study.ask(_distributions(space))
        values = {name: _rounded(part, trial.params[name]) for name, part in space.items()}
        if _key(space, values) not in tried:
            return values
    if size is None or size > MOST_COMBINATIONS:
        return None
    combinations = itertools.product(*map(_all_values, space.values()))
    left = (dict(zip(space, one, strict=True)) for one in combinations)
    return next((values for values in left if _key(space, values) not in tried), None)


def is_worth_going_on(results: Sequence[Result], evaluations: Sequence[Evaluation]) -> bool:
    """Return whether a probe with these evaluations so far is to be trained further, by the median of the others.

    Args:
        results: The probes before it.
        evaluations: Its own, in their order.

    Returns:
        Whether it goes on.
    """
    study = _study({}, results, 0)
    trial = study.ask()
    for place, evaluation in enumerate(evaluations):
        trial.report(evaluation.cost, place)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numpy's, of NaN
        return not trial.should_prune()


def _study(space: Space, results: Sequence[Result], seed: int) -> optuna.Study:
    """Return a study with the probes so far. Values outside the space (of the recipe itself) are left out of it."""
    import optuna
    from optuna.trial import TrialState, create_trial

    optuna.logging.set_verbosity(optuna.logging.ERROR)  # it announces each study
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.create_study(
            sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=RANDOM_PROBES, constant_liar=False),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=RANDOM_PROBES, n_warmup_steps=1),
        )
        distributions = _distributions(space)
        for result in results:
            within = {name: result.values[name] for name, part in space.items() if result.values[name] in part}
            study.add_trial(
                create_trial(
                    state=TrialState.COMPLETE if is_sound(result) else TrialState.PRUNED,
                    value=cost_of(result) if is_sound(result) else None,
                    params=within,
                    distributions={name: distributions[name] for name in within},
                    intermediate_values={place: one.cost for place, one in enumerate(result.evaluations)},
                )
            )
    return study


def _distributions(space: Space) -> dict[str, Any]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    def of(part: Any) -> Any:
        if not isinstance(part, Range):
            return CategoricalDistribution(part.values)
        if part.is_whole:
            return IntDistribution(int(part.low), int(part.high), log=part.is_log)
        return FloatDistribution(part.low, part.high, log=part.is_log)

    return {name: of(part) for name, part in space.items()}


def _rounded(part: Any, value: Any) -> Any:
    """Return a number of a range with three digits, within its ends: nobody writes more into a recipe."""
    if not isinstance(part, Range) or part.is_whole:
        return value
    return min(max(float(f"{value:.3g}"), part.low), part.high)


def _all_values(part: Any) -> Sequence[Any]:
    return range(int(part.low), int(part.high) + 1) if isinstance(part, Range) else part.values


def _key(space: Space, values: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(repr(float(value)) if _is_number(value) else repr(value) for value in (values[name] for name in space))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
