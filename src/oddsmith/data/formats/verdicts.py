"""Read which of several answers is the better one: a name, a number, flags, scores.

    "model_a", "A", "response 1", "left", "[[B]]", "A>>B"        a name
    "tie", "tie (bothbad)", "A=B", "equal"                       neither
    -3 ... 3                                                     negative: the first; 0: neither; positive: the second
    1, 2                                                         the number of an answer

``UndecidedRow`` is raised where neither answer is preferred, ``RowError`` where a verdict cannot be read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import RowError, UndecidedRow
from ...system.words import enumerated
from .conversations import shown
from .values import number_of

# Columns of a verdict, in the order in which they are taken for it.
WINNERS = (
    *("winner", "overall_preference", "preference_strength", "better_response_id", "preferred", "preference"),
    *("human_preference", "preferred_answer", "preferred_response", "better_answer", "better_response", "better"),
    *("choice", "verdict", "comparison", "judgment", "judgement", "vote", "selected", "best", "label", "labels"),
)
SIGNED = frozenset(("overall_preference", "preference_strength"))  # numbers of which the sign decides

# Words around the name of an answer.
_AROUND = (
    "model response answer output assistant completion candidate conversation reply system option generation text",
    "is are the better best good wins win won winner preferred slightly much significantly more than id number no",
)
_FILLING = frozenset(" ".join(_AROUND).split())
_TIE_OF_JUDGES = "[[C]]"  # of MT-Bench, beside [[A]] and [[B]]
_BAD = re.compile(r"both.?bad|neither|none|all.?bad", re.IGNORECASE)
_TIE = re.compile(r"\b(?:tie|tied|draw|equal|equally|same|both|similar|undecided|indifferent)\b|^=$", re.IGNORECASE)
_PLACES = {"left": 0, "right": 1, "first": 0, "second": 1, "third": 2, "fourth": 3}
_COMPARED = re.compile(r"\W*(\w+)\s*([<>]+|={1,2}|~)\s*(\w+)\W*")


def winner(value: Any, column: str, names: Mapping[str, Sequence[str]], *, is_signed: bool = False) -> str:
    """Return the member that a verdict in a column names.

    ``names`` are the members (a, b or 1, 2, ...) in their order, each with further names, such as that of its model;
    ``is_signed``: whether the sign of a number decides.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        raise UndecidedRow("no judgement", f"{column} is empty; expected {_expected(names)}")
    number = None if isinstance(value, bool) else number_of(value)
    if number is not None:
        return _of_number(number, column, list(names), is_signed)
    if isinstance(value, str):
        found = _of_text(value, names)
        if found is not None:
            return found
    raise RowError(
        "unknown winner",
        f"{column} is {shown(value) if isinstance(value, str) else repr(value)[:60]}; expected {_expected(names)}",
    )


def _expected(names: Mapping[str, Sequence[str]]) -> str:
    return f"{enumerated([*names, 'tie'], 'or')}"


def _of_number(number: float, column: str, members: list[str], is_signed: bool) -> str:
    if is_signed:
        if number == 0:
            raise UndecidedRow("tie", f"{column} is 0: both answers are equally good")
        if len(members) == 2:
            return members[0 if number < 0 else 1]
    name = str(int(number)) if number == int(number) else ""
    if name in members:
        return name
    is_from_one = members[0] == "1"
    if number == 0 and is_from_one:
        raise RowError(
            "unknown winner",
            f"{column} is 0, which may mean a tie, or the first answer where they are counted from 0; write tie, or the"
            f" number of the better answer ({enumerated(members, 'or')})",
        )
    if (number == -1 and members[0] == "0") or (is_from_one and number % 1 == 0.5):
        raise UndecidedRow("tie", f"{column} is {number:g}: no answer is preferred")
    raise RowError(
        "unknown winner",
        f"{column} is {number:g}, which may mean any of {enumerated(members)}; name the better answer"
        f" ({enumerated(members, 'or')}) in a column winner, or give -3 (the first) to 3 in overall_preference",
    )


def _of_text(value: str, names: Mapping[str, Sequence[str]]) -> str | None:
    """Return the member that a text names; None where it names none or several."""
    named = [member for member, others in names.items() if value in others]
    if named:
        return named[0] if len(named) == 1 else None  # two answers of one model
    if (compared := _COMPARED.fullmatch(value)) is not None:
        first, sign, second = (part.lower() for part in compared.groups())
        if {first, second} <= set(names):
            if sign[0] in "=~":
                raise UndecidedRow("tie", f"the winner is {value!r}")
            return first if sign[0] == ">" else second
    if _BAD.search(value):
        raise UndecidedRow("tie, both bad", f"the winner is {value!r}: no answer is preferred")
    words = re.findall(r"[^\W\d_]+|\d+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", value).lower())
    if _TIE.search(value.replace("_", " ")) or (value.strip() == _TIE_OF_JUDGES and list(names) == ["a", "b"]):
        raise UndecidedRow("tie", f"the winner is {value!r}: no answer is preferred")
    members = list(names)
    found = {word if word in names else None for word in words if word not in _FILLING or word in names}
    if len(found) == 1 and None not in found:
        return found.pop()
    places = {_PLACES[word] for word in words if word in _PLACES}
    if len(places) == 1 and all(word in _PLACES or word in _FILLING for word in words):
        place = places.pop()
        return members[place] if place < len(members) else None
    return None


def flagged(flags: Mapping[str, Any], tie: Any) -> str:
    """Return the member whose flag is set, as in ``winner_model_a: 1, winner_model_b: 0, winner_tie: 0``."""
    set_flags = [member for member, value in flags.items() if _is_set(value)]
    if len(set_flags) == 1 and not _is_set(tie):
        return set_flags[0]
    if _is_set(tie) and not set_flags:
        raise UndecidedRow("tie", "the flag of the tie is set: no answer is preferred")
    if not set_flags:
        raise UndecidedRow("no judgement", f"none of the {len(flags)} flags of the winner is set")
    raise RowError("unknown winner", f"{len(set_flags) + _is_set(tie)} flags of the winner are set; expected one")


def _is_set(value: Any) -> bool:
    return value is True or number_of(value) == 1 or (isinstance(value, str) and value.strip().lower() == "true")


def extremes(scores: Mapping[Any, float], *, are_ranks: bool = False) -> tuple[Any, Any]:
    """Return the best and the worst of several scored answers; of several with the same score the first one counts."""
    if len(scores) < 2:
        raise UndecidedRow("no judgement", f"{len(scores)} of the answers have a score; expected two or more")
    best, worst = max(scores, key=scores.__getitem__), min(scores, key=scores.__getitem__)
    if scores[best] == scores[worst]:
        raise UndecidedRow("tie", f"all {len(scores)} scored answers have the score {scores[best]:g}")
    return (worst, best) if are_ranks else (best, worst)
