"""Open the judges that a user asks for by name, each with a weight.

    rule, rule:FILE.yaml                      checks that the row, or a file, asks for            rule.py
    reward:MODEL, reward:MODEL#HEADS          a sequence-classification model                     reward.py
    judge:MODEL@SERVER                        a language model compares answers two by two        language_model.py
    rubric:MODEL@SERVER                       a language model gives each answer 1 to 10          language_model.py
    python:MODULE:FUNCTION                    a function of one's own                             own_function.py

``=WEIGHT`` at the end of a name, or ``WEIGHT*`` in front of it, is the weight beside other judges; 1 without.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

from ...errors import ConfigError
from ...system.secrets import masked
from ...system.words import enumerated
from ..records import Judge

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_IN_FRONT = re.compile(rf"({_NUMBER})\*(.+)", re.DOTALL)
_AT_THE_END = re.compile(rf"(.+)=({_NUMBER})", re.DOTALL)

# Each kind, with the module that opens it: ``open_judge(rest, name=..., concurrency=...)``.
KINDS = {
    "rule": "rule",
    "reward": "reward",
    "judge": "language_model",
    "rubric": "language_model",
    "python": "own_function",
}
FORMS = (
    "rule",
    "rule:FILE.yaml",
    "reward:MODEL",
    "judge:MODEL@SERVER",
    "rubric:MODEL@SERVER",
    "python:MODULE:FUNCTION",
)


class WeightedJudge(NamedTuple):
    """A judge, and how much its scores count beside those of others."""

    judge: Judge
    weight: float


def open_judges(asked: Sequence[str], *, concurrency: int = 8) -> list[WeightedJudge]:
    """Open judges by their names; all names are read before the first is opened.

    Args:
        asked: Names of judges, with or without a weight, as in ``["rule", "reward:MODEL=0.5"]``.
        concurrency: How many requests a judge behind a server may have open at once.

    Returns:
        The judges in the order of their names.

    Raises:
        ConfigError: A name is none, is given twice, or what it names cannot be used.
        ModelError: A model is not there, or judges nothing.
        MissingExtraError: A judge needs packages that are not installed.
        ServerError: A server does not answer.
    """
    return [WeightedJudge(open_judge(name, concurrency=concurrency), weight) for name, weight in _named(asked)]


def weights_of(asked: Sequence[str]) -> dict[str, float]:
    """Return the weight of each judge by its name; nothing is opened, and errors are those of the names."""
    return {masked(name): weight for name, weight in _named(asked)}


def _named(asked: Sequence[str]) -> list[tuple[str, float]]:
    """Return the names of judges with their weights, none of them twice."""
    found = [_weighed(text) for text in asked]
    if not found:
        raise ConfigError(f"no judge is given; expected {enumerated(FORMS, 'or')}")
    names = [name for name, _ in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(
            f"the judge {masked(twice)!r} is given twice; give it once, with the weight that it is to have"
        )
    for name in names:
        _kind(name)
    return found


def open_judge(name: str, *, concurrency: int = 8) -> Judge:
    """Open a judge by its name, without a weight; arguments and errors are those of ``open_judges``."""
    kind, rest = _kind(name)
    module = import_module(f".{KINDS[kind]}", __package__)
    judge: Judge = module.open_judge(kind, rest, name=masked(name), concurrency=concurrency)
    return judge


def _kind(name: str) -> tuple[str, str]:
    """Return the kind of a judge and what its name says beside it."""
    kind, _, rest = name.partition(":")
    if kind not in KINDS or (not rest.strip() and name != "rule"):
        raise ConfigError(f"the judge {masked(name)!r} is unknown; expected {enumerated(FORMS, 'or')}")
    return kind, rest.strip()


def _weighed(text: str) -> tuple[str, float]:
    """Return the name of a judge and its weight."""
    text = text.strip()
    if match := _IN_FRONT.fullmatch(text):
        number, name = match[1], match[2]
    elif match := _AT_THE_END.fullmatch(text):
        name, number = match[1], match[2]
    else:
        return text, 1.0
    weight = float(number)
    if not math.isfinite(weight) or weight == 0:
        raise ConfigError(f"the judge {masked(name)!r} has the weight {number}; expected a number that is not 0")
    return name.strip(), weight
