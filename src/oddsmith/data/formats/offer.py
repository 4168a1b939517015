"""Say which columns of a row may be meant by prompt, chosen and rejected, where no format has their names.

A guess is offered in an error, as a value of the setting ``columns``; nothing reads a row by it. It is made where the
names leave one choice:

    question, good_answer, bad_answer       prompt=question,chosen=good_answer,rejected=bad_answer
    Prompt, Chosen, REJECTED                prompt=Prompt,chosen=Chosen,rejected=REJECTED
    q, responses {best {text}, worst ...}   prompt=q,chosen=responses.best.text,rejected=responses.worst.text

or, for the prompt, where both answers begin with the text of one column.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from ...system.words import enumerated
from .columns import (
    ACCEPTED,
    ANSWER_WORDS,
    ANSWERS,
    CHOSEN,
    NEGATIONS,
    PROMPT_NAMES,
    REFUSED,
    REJECTED,
    is_answer,
    is_fact,
    is_label,
    is_media,
    is_no_prompt,
    words_of,
)

PROMPT = "prompt"
# Further words that name an answer. They may name other things as well, so a column of them is not read by itself.
_BETTER = (
    "winner won correct right gold golden ideal favored favoured favorite liked upvoted desired desirable wanted pos",
    "superior stronger",
)
_WORSE = (
    "loser lost wrong incorrect undesired undesirable unwanted disliked downvoted unpreferred neg inferior weaker",
    "refused declined discarded denied",
)
BETTER = ACCEPTED | frozenset(" ".join(_BETTER).split())
WORSE = REFUSED | frozenset(" ".join(_WORSE).split())
OUTCOMES = ("winner", "won", "loser", "lost")
# Names of messages, which are read as they are; names of a question, beside which others are background.
MESSAGES = ("conversations", "messages", "conversation")
QUESTIONS = (
    *("prompt", "instruction", "question", "query", "input", "inputs", "instructions", "questions", "queries"),
    *("user_input", "user_prompt", "user_message", "user_query", "prompt_text", "question_text"),
)
MIN_MISTYPED = 5  # letters of a word that may be another one with a letter wrong
CLOSENESS = 0.83  # "choosen", "promt", "prefered"; "accept" and "except" are less alike
MAX_NESTED = 3


def offered_columns(row: Mapping[str, Any]) -> dict[str, str]:
    """Return the columns that are probably meant (name -> column), where that is clear of each; else an empty dict.

    Names that the row has are left out. A column in an object has a dotted path.
    """
    known, is_clear = _meant(row)
    return {name: column for name, column in known.items() if name != column} if is_clear else {}


def unknown_columns(row: Mapping[str, Any], formats: Sequence[tuple[str, tuple[str, ...]]]) -> str:
    """Return what a row has and what the formats (name, columns) need, with a guess of what was meant."""
    found = f"found the columns {', '.join(map(str, row)) or 'none'}"
    if offered := offered_columns(row):
        guess = enumerated(f"{name}={column}" for name, column in offered.items())
        settings = "setting columns, or dataset.rename_columns"
        return f"{found}; expected prompt, chosen and rejected; did you mean {guess}? ({settings})"
    known, _ = _meant(row)
    form = ",".join(f"{name}={known.get(name, 'NAME')}" for name in (PROMPT, *ANSWERS) if name not in row)
    advice = f"; say which other columns are meant, as in columns: {form}" if form and len(row) > 1 else ""
    name, columns = max(formats, key=lambda known: sum(column in row for column in known[1]))
    missing = [column for column in columns if column not in row]
    if len(missing) < len(columns):
        are = "is" if len(missing) == 1 else "are"
        return f"{found}; {' and '.join(missing)} {are} missing ({name} format){advice}"
    prompts = [columns[0] for _, columns in formats if columns[1:] == ANSWERS]
    others = [f"; or {' and '.join(columns)}" for _, columns in formats if not set(ANSWERS) <= set(columns)]
    return (
        f"{found}; expected {prompts[0]}, chosen and rejected (instead of {prompts[0]} also {', '.join(prompts[1:])},"
        f" or none if the answers begin with it){''.join(others)}{advice}"
    )


def _meant(row: Mapping[str, Any]) -> tuple[dict[str, str], bool]:
    """Return which columns may be prompt, chosen and rejected, and whether no other choice is left."""
    leaves = dict(_leaves(row))
    sides = {side: [name for name, value in leaves.items() if _side(name, value) == side] for side in ANSWERS}
    sides = {side: _best(side, names) for side, names in sides.items()}
    if not sides[CHOSEN] and sides[REJECTED]:  # such as response and rejected_response
        plain = [name for name, value in leaves.items() if _side(name, value) is None and is_answer(name)]
        sides[CHOSEN] = _best(CHOSEN, plain)
    answers = {side: names[0] for side, names in sides.items() if len(names) == 1}
    prompts = _prompts(row, leaves, answers)
    known = {PROMPT: prompts[0]} if len(prompts) == 1 else {}
    return known | answers, len(answers) == len(ANSWERS) and len(prompts) < 2


def _leaves(value: Mapping[str, Any], path: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield the columns that may hold text or messages, those within objects by their paths."""
    for key, item in value.items():
        name = f"{path}{key}"
        if item is None or isinstance(item, bool | int | float) or is_media(name):
            continue
        if item and isinstance(item, Mapping) and not {"role", "from"} & item.keys() and depth < MAX_NESTED:
            yield from _leaves(item, f"{name}.", depth + 1)
        else:
            yield name, item


def _side(name: str, value: Any) -> str | None:
    """Return the answer that a column is named after, in any of its words, one of which may be mistyped."""
    words = words_of(name)
    if not words:
        return None
    if words[-1] in OUTCOMES:  # of a comparison, named by a word: "model_a"
        if isinstance(value, str) and is_label(name, value):
            return None
    elif is_fact(name):
        return None
    worse, better = (any(_is_among(word, side) for word in words) for side in (WORSE, BETTER))
    if worse or (better and not NEGATIONS.isdisjoint(words)):
        return REJECTED
    return CHOSEN if better else None


@lru_cache(maxsize=4096)
def _is_among(word: str, words: frozenset[str]) -> bool:
    """Return whether a word is one of those, or one of them with a letter wrong and none of the other side."""
    if word in words or len(word) < MIN_MISTYPED or word in BETTER | WORSE | ANSWER_WORDS:
        return word in words
    return bool(set(get_close_matches(word, BETTER | WORSE, n=1, cutoff=CLOSENESS)) & words)


def _best(side: str, names: Sequence[str]) -> list[str]:
    """Return the one of several columns that is named as the side itself, or else after an answer; else all."""
    exact = [name for name in names if "_".join(words_of(name)) == side]
    answers = [name for name in names if not ANSWER_WORDS.isdisjoint(words_of(name))]
    return next((found for found in (exact, answers) if len(found) == 1), list(names))


def _prompts(row: Mapping[str, Any], leaves: Mapping[str, Any], sides: Mapping[str, str]) -> list[str]:
    """Return the columns that may hold the prompt, one where it is clear; none where a format reads it as it is."""
    if PROMPT in row:
        return [PROMPT]
    if {"instruction", "input"} <= row.keys() or row.get("history"):
        return []  # which are read together
    others = {
        name: value
        for name, value in leaves.items()
        if name not in sides.values() and not (is_no_prompt(name) or _side(name, value))
    }
    if any(name in MESSAGES and not isinstance(value, str) for name, value in others.items()):
        return []
    named = [name for known in PROMPT_NAMES for name in others if _prompt_name(name) == known]
    if named and (len(named) == 1 or _prompt_name(named[0]) in QUESTIONS):
        return named[:1]
    answers = [leaves[column] for column in sides.values()]
    begun = [name for name, value in others.items() if len(answers) == 2 and _begins_all(value, answers)]
    texts = [name for name, value in others.items() if not (isinstance(value, str) and is_label(name, value))]
    return begun if len(begun) == 1 else texts or list(others)


@lru_cache(maxsize=4096)
def _prompt_name(name: str) -> str:
    """Return the name of a prompt that a column has, maybe with a letter wrong, and in an object or not."""
    joined = "_".join(words_of(name.rpartition(".")[2]))
    if joined in PROMPT_NAMES or len(joined) < MIN_MISTYPED:
        return joined
    return next(iter(get_close_matches(joined, PROMPT_NAMES, n=1, cutoff=CLOSENESS)), joined)


def _begins_all(value: Any, answers: Sequence[Any]) -> bool:
    """Return whether all answers begin with a text, which is no short one."""
    text = value.strip() if isinstance(value, str) else ""
    return len(text.split()) > 1 and all(
        isinstance(answer, str) and answer.lstrip().startswith(text) for answer in answers
    )
