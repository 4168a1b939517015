"""What a probe leaves: its result, one file in its folder, written last; a probe without one was interrupted.

FOLDER/
  tune.json             what is searched; a search with other settings is refused here
  probes/000/           the recipe's own settings; 001, 002, ... those that were tried; 000-again, ... another seed
    events.jsonl        its event log, so `oddsmith diagnose` and `monitor` read it
    probe.log           what it printed
    result.json         its result
  recipe.yaml           the recipe to train
  tune.svg              the picture
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from ..diagnose.findings import Verdict
from ..errors import DataError
from ..system.files import replacing
from ..system.outside import read_text
from ..system.strict_json import number, read_object, strict

PROBES = "probes"
RESULT_FILE, LOG_FILE = "result.json", "probe.log"
FIRST = "000"  # the name of the probe of the recipe's own settings
AGAIN = "-again"  # behind the name of a probe that is made once more, with another seed


class State(StrEnum):
    """How a probe ended."""

    FINISHED = "finished"  # after its last step
    PRUNED = "pruned"  # stopped early: others were better at the same step
    FAILED = "failed"  # by an error


@dataclass(frozen=True)
class Evaluation:
    """Figures of an evaluation, means over the held-out pairs; infinite ones are ``None`` in its file."""

    step: int
    cost: float
    log_odds: float
    nll: float  # of the chosen answer, a token


@dataclass(frozen=True)
class Result:
    """The result of a probe; figures of pairs are those of its last evaluation, in the order of the pairs."""

    name: str  # of its folder
    values: Mapping[str, Any]  # setting -> value that was tried
    state: State
    seed: int = 0
    verdict: Verdict = Verdict.CANNOT_TELL  # of its diagnosis
    finding: str = ""  # the worst finding, in a line
    error: str = ""  # why it failed
    steps: int = 0  # of the probe
    steps_of_run: int = 0  # of the recipe's run
    seconds: float = 0.0
    pairs: str = ""  # digest of the tokens of the held-out pairs
    held_out: str = ""  # where they come from, for reading
    evaluations: tuple[Evaluation, ...] = ()
    log_odds: tuple[float, ...] = field(default=(), repr=False)
    logp_chosen: tuple[float, ...] = field(default=(), repr=False)


def has_results(folder: Path) -> bool:
    """Return whether the folder of a search has the result of a probe."""
    return next(folder.glob(f"{PROBES}/*/{RESULT_FILE}"), None) is not None


def write_result(folder: Path, result: Result) -> None:
    """Write a result into the folder of its probe, complete or not at all."""
    with replacing(folder / RESULT_FILE) as partial:
        partial.write_text(json.dumps(strict(asdict(result)), allow_nan=False), encoding="utf-8")


def read_result(folder: Path) -> Result | None:
    """Read the result of a probe; ``None`` where there is none, ``DataError`` for a file that is not one."""
    file = folder / RESULT_FILE
    if not file.exists():
        return None
    try:
        return result_of(read_object(read_text(file, follow=False)))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{file}: not the result of a probe; remove the folder, and the probe is made again") from error


def result_of(values: Mapping[str, Any]) -> Result:
    """Make a result of JSON values."""
    evaluations = tuple(map(evaluation_of, values["evaluations"]))
    return Result(
        name=str(values["name"]),
        values=dict(values["values"]),
        state=State(values["state"]),
        seed=int(values["seed"]),
        verdict=Verdict(values["verdict"]),
        finding=str(values["finding"]),
        error=str(values["error"]),
        steps=int(values["steps"]),
        steps_of_run=int(values["steps_of_run"]),
        seconds=_figure(values["seconds"]),
        pairs=str(values["pairs"]),
        held_out=str(values["held_out"]),
        evaluations=evaluations,
        log_odds=tuple(map(_figure, values["log_odds"])),
        logp_chosen=tuple(map(_figure, values["logp_chosen"])),
    )


def evaluation_of(values: Mapping[str, Any]) -> Evaluation:
    """Make an evaluation of JSON values."""
    return Evaluation(int(values["step"]), *(_figure(values[name]) for name in ("cost", "log_odds", "nll")))


def _figure(value: Any) -> float:
    """Return a number; NaN for ``null``, which stands for what JSON cannot hold."""
    found = math.nan if value is None else number(value)
    if found is None:
        raise ValueError(f"{value!r} in the place of a number")
    return float(found)
