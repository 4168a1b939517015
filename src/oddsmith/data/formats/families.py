"""Find columns that belong together, and the column of the prompt, by their names.

    response_a, response_b                       the family ("response",) with the members a, b
    model_1_answer, model_2_answer, ...          ("model", "answer") with 1, 2, ...
    scoreA, scoreB                               ("score",) with a, b

A family has at least two members, named a, b, c, ... or numbered from 0 or 1.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from ...errors import RowError
from .columns import PROMPT_NAMES, words_of
from .values import parsed

Columns = dict[str, str]  # names of columns by their members, in ascending order

# Last words of the names of answers, in the order in which families are taken for answers.
ANSWERS = (
    *("response", "answer", "completion", "output", "reply", "generation", "continuation", "summary", "ref"),
    *("candidate", "assistant", "conversation"),
)
SCORES = ("score", "rating", "reward", "grade", "rank", "ranking", "overall", "quality", "elo")
RANKS = frozenset(("rank", "ranks", "ranking", "rankings"))  # of which the lowest is the best
# Words of scores of which the lowest may be the best, so that they rate nothing.
FAULTS = frozenset(
    ("toxicity", "toxic", "harm", "harmfulness", "error", "errors", "loss", "perplexity", "bias", "risk", "distance")
)
TEXT_KEYS = ("full_text", "text", "content", "body")  # of a prompt that is an object

_WORD = re.compile(r"[^\W\d_]+|\d+")
_MEMBER = re.compile(r"[a-h]|\d{1,2}")
_ALWAYS = ("system", "tools", "chat_template_kwargs")


@lru_cache(maxsize=4096)
def _split(name: str) -> tuple[tuple[str, ...], str] | None:
    """Return the words of a name without its member, and the member; None for a name without one."""
    spaced = re.sub(r"(?<=[a-z\d])(?=[A-Z])", " ", name)
    words = [word.lower() for word in _WORD.findall(spaced)]
    places = [place for place, word in enumerate(words) if _MEMBER.fullmatch(word)]
    if not places or len(words) < 2:
        return None
    member = words.pop(places[-1])
    return tuple(words), member.lstrip("0") or "0" if member.isdigit() else member


def is_of_answers(name: str) -> bool:
    """Return whether a name is that of one of several answers, or of its score."""
    parts = _split(name)
    return parts is not None and parts[0][-1].removesuffix("s") in (*ANSWERS, *SCORES)


def families(row: Mapping[str, Any]) -> dict[tuple[str, ...], Columns]:
    """Return all families of columns by their words."""
    found: dict[tuple[tuple[str, ...], bool], Columns] = {}
    for name in row:
        if (parts := _split(str(name))) is not None:
            found.setdefault((parts[0], parts[1].isdigit()), {}).setdefault(parts[1], str(name))
    whole: dict[tuple[str, ...], Columns] = {}
    for (words, is_number), columns in found.items():
        members = sorted(columns, key=lambda member: int(member) if is_number else ord(member))
        first = int(members[0]) if is_number else ord(members[0]) - ord("a")
        last = int(members[-1]) if is_number else ord(members[-1]) - ord("a")
        if len(members) >= 2 and first in ((0, 1) if is_number else (0,)) and last - first == len(members) - 1:
            whole.setdefault(words, {member: columns[member] for member in members})
    return whole


def answers_of(row: Mapping[str, Any], found: Mapping[tuple[str, ...], Columns]) -> Columns | None:
    """Return the family that holds the answers: text, messages, or nothing."""
    for word in ANSWERS:
        for words, columns in found.items():
            values = [row[name] for name in columns.values()]
            if words[-1] in (word, f"{word}s") and all(
                value is None or isinstance(value, str | list | tuple | Mapping) for value in values
            ):
                return columns
    return None


def scores_of(found: Mapping[tuple[str, ...], Columns], answers: Collection[str]) -> tuple[Columns | None, bool]:
    """Return the family that rates the answers, and whether its numbers are ranks.

    Of several, such as ``score_a`` beside ``helpfulness_score_a``, the one with the fewest words counts.
    """
    rating = [
        (len(words), SCORES.index(word.removesuffix("s")), words, columns)
        for words, columns in found.items()
        if set(columns) == set(answers) and FAULTS.isdisjoint(words)
        for word in words
        if word.removesuffix("s") in SCORES
    ]
    if not rating:
        return None, False
    _, _, words, columns = min(rating, key=lambda item: item[:2])
    return columns, not RANKS.isdisjoint(words)


class Prompt(NamedTuple):
    """The part of a row that is asked."""

    columns: dict[str, Any]  # under the names that the formats of pairs.py read
    read: tuple[str, ...]  # names of the columns that it is from


def prompt_of(row: Mapping[str, Any], answers: Collection[str]) -> Prompt:
    """Return the prompt of a row of which some columns are answers; without one it is in the answers, or missing."""
    always = {name: row[name] for name in _ALWAYS if name in row}
    if row.get("instruction") is not None:
        names = [name for name in ("instruction", "input", "history") if name in row and name not in answers]
        return Prompt({**always, **{name: row[name] for name in names}}, (*names, *always))
    named = {"_".join(words_of(str(name))): str(name) for name in reversed(list(row)) if row[name] is not None}
    for known in PROMPT_NAMES:
        name = named.get(known)
        if name is None or name in answers:
            continue
        value = row[name]
        if isinstance(value, Mapping):
            key = next((key for key in TEXT_KEYS if isinstance(value.get(key), str)), None)
            value = value[key] if key is not None and "role" not in value else value
        if not isinstance(value, str):
            return Prompt({**always, "prompt": value}, (name, *always))
        history = {"history": row["history"]} if known != "history" and _is_history(row.get("history")) else {}
        return Prompt({**always, "question": value, **history}, (name, *history, *always))
    return Prompt(always, tuple(always))


def _is_history(value: Any) -> bool:
    return isinstance(value, list | tuple) or (isinstance(value, str) and value.lstrip()[:1] == "[")


def with_turns(prompt: Prompt, answers: Sequence[Any]) -> tuple[Prompt, list[Any]]:
    """Return whole conversations for questions and answers in lists of the same length, also lists written as text.

    Source: the arena's training set on Kaggle, of which ``prompt`` and ``response_a`` are such lists.
    """
    column = next((name for name in ("prompt", "question") if name in prompt.columns), None)
    questions = _texts(prompt.columns[column]) if column else None
    lists = [_texts(answer) for answer in answers]
    if questions is None or not all(texts is not None and len(texts) == len(questions) for texts in lists):
        return prompt, list(answers)
    talks: list[Any] = []
    for texts in lists:
        turns = zip(questions, texts or (), strict=True)
        talk = [
            {"role": role, "content": text}
            for turn in turns
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
        talks.append(None if any(message["content"] is None for message in talk) else talk)
    return Prompt({name: value for name, value in prompt.columns.items() if name != column}, prompt.read), talks


def _texts(value: Any) -> list[str | None] | None:
    """Return a list of texts and nulls, which may be written as text; None for anything else."""
    if isinstance(value, str):
        if value.lstrip()[:1] != "[":
            return None
        try:
            value = parsed(value, "a list of turns")
        except RowError:
            return None
    if not isinstance(value, list | tuple) or not value:
        return None
    return list(value) if all(item is None or isinstance(item, str) for item in value) else None
