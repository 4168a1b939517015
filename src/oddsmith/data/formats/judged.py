"""Turn rows of several answers and a verdict on them into rows with ``chosen`` and ``rejected``.

    response_a, response_b, winner           the better one against the other (verdicts.py); so conversation_a, ...
    response_a, response_b, winner_model_a, winner_model_b, winner_tie
    response_1, response_2, ..., score_1, score_2, ...       the highest score against the lowest; the lowest rank
    answers: [{text, score}, ...]                            against the highest
    generations: [...], ratings: [...]

``Restated.row`` has the columns that pairs.py reads, with ``score_chosen`` and ``score_rejected`` where there are
scores. Rows that prefer neither answer are an ``UndecidedRow``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ...errors import RowError, UndecidedRow
from ...system.words import enumerated
from .columns import CHOSEN, REJECTED, words_of
from .families import RANKS, Columns, Prompt, answers_of, families, prompt_of, scores_of, with_turns
from .messages import Message
from .transcripts import is_hh_dialogue
from .values import checked_text, kind_of, number_of, parsed
from .verdicts import SIGNED, WINNERS, extremes, flagged, winner

Row = Mapping[str, Any]

# Columns with a list of answers, and those with the list of their scores; the first of each that a row has.
LISTS = ("generations", "responses", "answers", "candidates", "outputs", "replies")
LIST_SCORES = ("ratings", "scores", "rewards", "ranks", "rankings", "ranking", "labels")
# Keys of an answer in a list: of its score, and of its text.
ITEM_SCORES = (
    "overall_score",
    "fine-grained_overall_score",
    "score",
    "pm_score",
    "rating",
    "reward",
    "rank",
    "votes",
    "label",
)
ITEM_TEXTS = ("response", "completion", "answer", "content", "text", "output", "messages", "conversation")


class Restated(NamedTuple):
    """A row with the columns of pairs.py."""

    row: dict[str, Any]
    read: frozenset[str]  # names of the columns of the original that it holds


def preferring(prompt: Prompt, sides: Sequence[Any], read: Sequence[str], scores: Sequence[float] = ()) -> Restated:
    """Return the row that prefers the first of two answers, with their scores where there are any.

    ``read`` are the columns beside those of the prompt. An answer that is null is an ``UndecidedRow``,
    answers of text without a prompt are a ``RowError``.
    """
    if any(value is None for value in sides):
        raise UndecidedRow("one answer only", "one of the two answers is null")
    has_prompt = not {"prompt", "question", "instruction"}.isdisjoint(prompt.columns)
    if not has_prompt and any(isinstance(side, str) and not is_hh_dialogue(side) for side in sides):
        raise RowError("no prompt", "no column holds the question that the answers are to; give it in a column prompt")
    row = {**prompt.columns, **dict(zip((CHOSEN, REJECTED), sides, strict=True))}
    if scores:
        row |= {f"score_{side}": score for side, score in zip((CHOSEN, REJECTED), scores, strict=True)}
    return Restated(row, frozenset((*prompt.read, *read)))


def winner_column(row: Row) -> str | None:
    """Return the column of the verdict; None without one."""
    named = {"_".join(words_of(str(name))): str(name) for name in row}
    return next((named[known] for known in WINNERS if known in named), None)


# Two or more columns of answers


def has_verdict(row: Row) -> bool:
    """Return whether a row has several columns of answers, and one that says which is better."""
    found = families(row)
    answers = answers_of(row, found)
    return answers is not None and (
        winner_column(row) is not None or scores_of(found, answers)[0] is not None or _flags(found, answers) is not None
    )


def answers_without_verdict(row: Row) -> str | None:
    """Return what is missing in a row of several answers, for a message; None for any other row."""
    answers = answers_of(row, families(row))
    if answers is None:
        return None
    members = list(answers)
    scores = enumerated(f"score_{member}" for member in members)
    return (
        f"found the columns {', '.join(map(str, row))}, of which {enumerated(answers.values())} are answers, and none"
        f" that says which is better; expected chosen and rejected, a column winner ({enumerated(members, 'or')}), or"
        f" {scores}"
    )


def compared(row: Row) -> Restated:
    """Restate a row of several columns of answers: the winner against the other, or the best score against the worst.

    A verdict goes before scores. Of more than two answers a winner stands against the one with the lowest score, or
    else against the first other one.
    """
    found = families(row)
    answers = answers_of(row, found) or {}
    column, flags = winner_column(row), _flags(found, answers)
    scores, are_ranks = _scores(row, found, answers)
    read = [*answers.values(), *(scores_of(found, answers)[0] or {}).values()]
    if flags is not None:
        ties = next((columns for name, columns in _ties(row).items()), None)
        best = flagged({member: row[name] for member, name in flags.items()}, row[ties] if ties else None)
        read += flags.values()
    elif column is not None and not (_is_empty(row[column]) and len(scores) >= 2):
        best = _winner(row, column, answers, found)
        read.append(column)
    else:
        best, worst = extremes(scores, are_ranks=are_ranks)
        return _pair(row, answers, best, worst, read, () if are_ranks else (scores[best], scores[worst]))
    others = [member for member in answers if member != best]
    rated = {member: scores[member] for member in others if member in scores}
    worst = (max if are_ranks else min)(rated, key=rated.__getitem__) if len(others) > 1 and rated else others[0]
    strength: tuple[float, ...] = ()
    if best in scores and worst in scores:
        strength = (scores[best], scores[worst]) if not are_ranks else (-scores[best], -scores[worst])
    elif column is not None and "_".join(words_of(column)) in SIGNED:
        strength = (abs(number_of(row[column]) or 0.0), 0.0)
    return _pair(row, answers, best, worst, read, strength)


def _pair(row: Row, answers: Columns, best: str, worst: str, read: Sequence[str], scores: Sequence[float]) -> Restated:
    prompt = prompt_of(row, (*answers.values(), *read))
    sides = [_judged_turn(row, row[answers[member]]) for member in (best, worst)]
    prompt, sides = with_turns(prompt, sides)
    return preferring(prompt, sides, read, scores)


def _judged_turn(row: Row, answer: Any) -> Any:
    """Return a conversation up to the turn that was judged, where a column ``turn`` beside two model names says which.

    Source: lmsys/mt_bench_human_judgments, of which a conversation has two turns and each is judged.
    """
    turn = row.get("turn")
    if {"judge", "turn"} <= row.keys() and isinstance(turn, int) and isinstance(answer, list) and turn > 0:
        return answer[: 2 * turn]
    return answer


def _winner(row: Row, column: str, answers: Columns, found: Mapping[tuple[str, ...], Columns]) -> str:
    value, name = row[column], "_".join(words_of(column))
    members = list(answers)
    models = found.get(("model",), {})
    names = {
        member: tuple(filter(None, (answers[member], _text(row.get(models.get(member, "")))))) for member in members
    }
    if {words for words, columns in found.items() if columns == answers} == {("human", "ref")}:  # SHP: 1 is A, 0 is B
        value = {0.0: "b", 1.0: "a"}.get(number_of(value), value)  # type: ignore[arg-type]
    number = number_of(value)
    is_scale = name == "preference" and number is not None and (number <= 0 or number == 3) and len(members) == 2
    if name == "preference" and number in (1, 2) and ("output",) not in found:
        raise RowError(
            "unknown winner",
            f"{column} is {number:g}, which may mean answer {number:g}, or that the second one is better by {number:g};"
            f" say which, as in columns: winner={column} (1 or 2: the better answer) or columns:"
            f" overall_preference={column} (-3 to 3: below 0 the first is better)",
        )
    if name in ("label", "labels") and number in (0, 1) and members[0] == "1":
        raise RowError(
            "unknown winner",
            f"{column} is {number:g}, which may count the answers from 0 or from 1; say so if it is from 1, as in"
            f" columns: winner={column}, else name the better answer ({enumerated(members, 'or')}) in a column winner",
        )
    return winner(value, column, names, is_signed=name in SIGNED or is_scale)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value.strip() else None


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _flags(found: Mapping[tuple[str, ...], Columns], answers: Columns | None) -> Columns | None:
    """Return the columns ``winner_model_a`` and ``winner_model_b``, or their like."""
    for words, columns in found.items():
        if answers and words[0] == "winner" and set(columns) == set(answers):
            return columns
    return None


def _ties(row: Row) -> dict[str, str]:
    return {name: name for name in map(str, row) if words_of(name) == ("winner", "tie")}


def _scores(row: Row, found: Mapping[tuple[str, ...], Columns], answers: Columns) -> tuple[dict[str, float], bool]:
    """Return the scores by the members of the answers that have one and are not null, and whether they are ranks."""
    columns, are_ranks = scores_of(found, answers)
    numbers = {member: number_of(row[name]) for member, name in (columns or {}).items()}
    return {
        member: number for member, number in numbers.items() if number is not None and row[answers[member]] is not None
    }, are_ranks


# A list of answers


def is_ultrafeedback(row: Row) -> bool:
    """Return whether a row has the columns of UltraFeedback: a prompt and completions."""
    return "completions" in row and any(name in row for name in ("instruction", "prompt", "question", "query"))


def has_rated_list(row: Row) -> bool:
    """Return whether a row has a list of answers with scores of their own, or beside a list of scores."""
    column = _column_of_list(row, LISTS)
    return column is not None and (_column_of_list(row, LIST_SCORES) is not None or _has_item_scores(row[column]))


def ranked(row: Row, column: str | None = None) -> Restated:
    """Restate a row with a list of answers: the one with the highest score (or lowest rank) against the other end.

    The list is in ``column``; by default in the first of ``LISTS`` that a row has.
    Answers without a number for a score are left out ("4.5" is a number, "N/A" is not). Of several with the same score
    the first one counts.

    Source: Cui et al., "UltraFeedback", arXiv 2310.01377; openbmb/UltraFeedback.
    """
    column = column or _column_of_list(row, LISTS) or LISTS[0]
    items = parsed(row[column], column)
    if items is None:
        raise RowError("null value", f"{column} is null; expected a list of {column} with scores")
    score_column = _column_of_list(row, LIST_SCORES)
    are_objects = isinstance(items, list | tuple) and all(isinstance(item, Mapping) for item in items)
    if not isinstance(items, list | tuple) or not (are_objects or score_column is not None):
        raise RowError(
            f"malformed {column}",
            f"{column} is {kind_of(items)} without scores; expected a list of objects with scores",
        )
    key = None
    if score_column is not None and not _has_item_scores(items):
        numbers, are_ranks = _parallel(row, score_column, column, len(items)), score_column in RANKS
    else:
        key = _score_key(items)
        numbers, are_ranks = _item_scores(items, key), key in RANKS
    if len(numbers) < 2:
        raise UndecidedRow(
            "no judgement",
            f"{column} holds {len(items)}, fewer than two of them with a score ({', '.join(ITEM_SCORES)})",
        )
    texts = {place: _item_text(items[place], f"{column}[{place}]") for place in numbers}
    numbers = {place: number for place, number in numbers.items() if texts[place] is not None}
    best, worst = extremes(numbers, are_ranks=are_ranks)
    read = (column, *([score_column] if score_column is not None and key is None else []))
    prompt = prompt_of(row, read)
    return preferring(prompt, (texts[best], texts[worst]), read, () if are_ranks else (numbers[best], numbers[worst]))


def _column_of_list(row: Row, names: Sequence[str]) -> str | None:
    """Return the first of the columns that holds a list, also one written as text."""
    for column in names:
        value = row.get(column)
        if isinstance(value, list | tuple) or (isinstance(value, str) and value.lstrip()[:1] in ("[", "(")):
            return column
    return None


def _has_item_scores(value: Any) -> bool:
    """Return whether the answers in a list have scores of their own."""
    items = value if isinstance(value, list | tuple) else ()
    return any(isinstance(item, Mapping) and any(key in item for key in ITEM_SCORES) for item in items)


def _score_key(items: Sequence[Any]) -> str | None:
    """Return the first key that gives two answers a score, or else the first that one has."""
    objects = [item for item in items if isinstance(item, Mapping)]
    for most in (2, 1):
        for key in ITEM_SCORES:
            if sum(number_of(item.get(key)) is not None for item in objects) >= most:
                return key
    return None


def _item_scores(items: Sequence[Any], key: str | None) -> dict[int, float]:
    numbers = {place: number_of(item.get(key)) for place, item in enumerate(items) if key and isinstance(item, Mapping)}
    return {place: number for place, number in numbers.items() if number is not None}


def _parallel(row: Row, score_column: str, column: str, count: int) -> dict[int, float]:
    """Return the scores of a list beside the answers by their places."""
    values = parsed(row[score_column], score_column)
    if not isinstance(values, list | tuple) or len(values) != count:
        found = f"a list of {len(values)}" if isinstance(values, list | tuple) else kind_of(values)
        raise RowError(
            "malformed scores",
            f"{score_column} is {found}; expected a list of {count}, one number for each of {column}",
        )
    numbers = {
        place: float(value) if isinstance(value, bool) else number_of(value) for place, value in enumerate(values)
    }
    return {place: number for place, number in numbers.items() if number is not None}


def _item_text(item: Any, where: str) -> str | list[Message] | None:
    """Return the text or the messages of an answer in a list; None where it is null."""
    if isinstance(item, Mapping) and not ("role" in item or "from" in item):
        key = next((key for key in ITEM_TEXTS if key in item), ITEM_TEXTS[0])
        where, item = f"{where}.{key}", item.get(key)
    if isinstance(item, Mapping):
        return [dict(item)]
    if isinstance(item, list | tuple) and item and all(isinstance(turn, Mapping) for turn in item):
        return list(item)
    return None if item is None else checked_text(item, where, "response is not text")
