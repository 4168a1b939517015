"""Score answers by rules that can be verified: the share of the checks that an answer meets.

    score = checks met / checks put to the answer

What is checked stands in the row of the prompt, by the columns in checks.py, or for all rows in a file: ``rule:FILE``
holds the same names with their values, and a row's own value of that name wins. A check that is malformed or unknown is
left out for all answers to the question, and counted. An answer that one check could not tell of, or whose checks take
longer than ``ANSWER_S``, has no score.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from ...errors import ConfigError, MissingExtraError, first_line
from ...system.outside import read_text
from ..records import Answer, Asked, Question, Said, Score, digest_of
from .check_process import ANSWER_S, NEEDED, CheckProcess, TooSlowError, is_installed
from .checks import COLUMNS

LONGEST_ANSWER = 100_000  # characters
ALL_MET = "all checks met"
_NO_CHECK = "its row asks for no check"


class Rules:
    """A judge that checks what rows and a file ask for."""

    def __init__(self, name: str, for_all: Mapping[str, Any], answer_s: float = ANSWER_S):
        self.name, self._for_all = name, for_all
        self._process = CheckProcess(answer_s)
        _require_installed(for_all)

    def score(self, asked: Sequence[Asked]) -> Iterator[tuple[int, Said]]:
        """Score answers one by one; those to a question whose checks are too slow have no score, all of them.

        Checks of a package that is not installed are a ``MissingExtraError``.
        """
        for position, one in enumerate(asked):
            row = self._asked(one.question)
            if not row:
                yield position, dict.fromkeys(one.missing, Score(None, _NO_CHECK))
                continue
            _require_installed(row)
            prompt = next((text["content"] for text in reversed(one.question.messages) if text["role"] == "user"), "")
            try:
                for place in one.missing:
                    yield position, {place: self._score(row, prompt, one.answers[place])}
            except TooSlowError:
                slow = f"the checks of its row take more than {self._process.answer_s:g} s"
                yield position, dict.fromkeys(range(len(one.answers)), Score(None, slow))

    def basis(self, question: Question) -> str:
        """Return a digest of what is checked of the answers to a question."""
        return digest_of(self._asked(question))

    def _asked(self, question: Question) -> dict[str, Any]:
        own = {name: question.row[name] for name in COLUMNS if question.row.get(name) is not None}
        return {**self._for_all, **own}

    def _score(self, row: Mapping[str, Any], prompt: str, answer: Answer) -> Score:
        if len(answer.text) > LONGEST_ANSWER:
            return Score(None, f"longer than {LONGEST_ANSWER:,} characters")
        outcome = self._process.check(row, prompt, answer.text, answer.tokens)
        counts = dict.fromkeys((f"left out: {reason[:200]}" for reason in outcome.left_out), 1)
        if outcome.unsure:
            return Score(None, outcome.unsure, counts)
        if not outcome.met:
            return Score(None, f"no check is left ({outcome.left_out[0][:200]})" if counts else _NO_CHECK, counts)
        met = sum(is_met for _, is_met in outcome.met)
        failed = [name for name, is_met in outcome.met if not is_met]
        if not failed:
            counts[ALL_MET] = 1
        reason = f"{met} of {len(outcome.met)}" + (f"; not {', '.join(failed)[:200]}" if failed else "")
        return Score(met / len(outcome.met), reason, counts)


def open_judge(kind: str, rest: str, *, name: str, concurrency: int = 1) -> Rules:
    """Open the judge ``rule``, with the file of rules that is named, if any.

    A file that is missing, or holds no rules, is a ``ConfigError``.
    """
    return Rules(name, _read_rules(rest) if rest else {})


def _read_rules(file: str) -> dict[str, Any]:
    """Read a file of rules: YAML, or JSON, which is YAML."""
    try:
        rules = yaml.safe_load(read_text(file, typed=True))
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file; expected rules for the answers to all prompts") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: no rules can be read ({first_line(error)})") from error
    if not isinstance(rules, dict) or not rules:
        raise ConfigError(f"{file}: expected rules as NAME: VALUE, such as max_words: 100")
    if unknown := [str(name) for name in rules if name not in COLUMNS]:
        raise ConfigError(f"{file}: the rule {unknown[0]!r} is unknown; expected one of {', '.join(COLUMNS)}")
    return rules


def _require_installed(row: Mapping[str, Any]) -> None:
    for column in NEEDED:
        if row.get(column) and not is_installed(column):
            raise MissingExtraError(f"checking {column}", "rules")
