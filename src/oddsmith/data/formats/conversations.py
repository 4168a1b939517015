"""Find out where the prompt of a conversation ends: prompt and answers may repeat each other's turns.

    prompt          answers            become
    [u]             [u, a]             [u]            [a]     the answers repeat the prompt
    [u]             [s, u, a]          [s, u]         [a]     with a system message
    [s, u]          [u, a]             [s, u]         [a]     without it
    [u1, b1, u2]    [u2, a]            [u1, b1, u2]   [a]     the end of it
    [u2]            [u1, b1, u2, a]    [u1, b1, u2]   [a]     with earlier turns
    [u1, b1]        [u2, a]            [u1, b1, u2]   [a]     the prompt holds the earlier turns alone
    [u, a]          [u, a], [u, c]     [u]            [a]     the prompt holds the answer of one side, or a third one
    [u, "It is"]    ["It is blue"]     [u, "It is"]   [" blue"]

s, u and a to c are turns of system, user and assistant. A prompt that ends with the assistant's turn is continued by
the answers, unless it is one of the above. What does not fit is refused: an answer would be learned as an answer to
another question, or a question as an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import NamedTuple

from ...errors import RowError
from .messages import SYSTEM_ROLES, Message
from .values import common_prefix_length

SHOWN_CHARACTERS = 60


class Conversation(NamedTuple):
    """A prompt and two answers to it, which begin with an assistant's turn, or a tool's."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]


def shared_prompt(chosen: list[Message], rejected: list[Message]) -> Conversation | None:
    """Split two whole conversations at their common beginning; each side keeps its last message.

    The result is None where they have no user's turn in common. Sides that part at a user's turn, or have different
    system messages, are a ``RowError``.
    """
    (first_system, first), (second_system, second) = map(_split_system, (chosen, rejected))
    end = common_prefix_length([_key(turn) for turn in first[:-1]], [_key(turn) for turn in second[:-1]])
    if all(turn["role"] in SYSTEM_ROLES for turn in first[:end]):
        return None
    _require_answers(first[end:], second[end:])
    return Conversation([*_one_system(first_system, second_system), *first[:end]], first[end:], second[end:])


def reconciled(prompt: list[Message], chosen: list[Message], rejected: list[Message]) -> Conversation:
    """Return a conversation of a prompt and two answers, either of which may repeat turns of it.

    Turns that contradict each other are a ``RowError``. Each of the answers has a message.
    """
    system, dialogue = _split_system(prompt)
    (chosen_system, chosen), (rejected_system, rejected) = map(_split_system, (chosen, rejected))
    if dialogue and dialogue[-1]["role"] == "assistant":
        dialogue, chosen, rejected = _before_the_answer(dialogue, chosen, rejected)
    chosen_prompt, chosen = _divided(dialogue, chosen, "chosen")
    rejected_prompt, rejected = _divided(dialogue, rejected, "rejected")
    longer, shorter = sorted((chosen_prompt, rejected_prompt), key=len, reverse=True)
    if not _is_same(longer[len(longer) - len(shorter) :], shorter):
        raise _disagree("chosen and rejected repeat different turns before their answers")
    while (
        min(len(chosen), len(rejected)) > 1 and chosen[0]["role"] != "assistant" and _is_same(chosen[:1], rejected[:1])
    ):
        longer, chosen, rejected = [*longer, chosen[0]], chosen[1:], rejected[1:]  # results of tools
    _require_answers(chosen, rejected)
    return Conversation([*_one_system(system, chosen_system, rejected_system), *longer], chosen, rejected)


def _before_the_answer(
    dialogue: list[Message], chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message], list[Message], list[Message]]:
    """Return a prompt that ends with an assistant's turn without what an answer has, too, and the answers."""
    sides = (chosen, rejected)
    if any(len(side) > 1 and _is_same(dialogue, side) for side in sides):  # the whole conversation of one side
        if all(side[0]["role"] == "user" for side in sides):
            whole = shared_prompt(chosen, rejected)
            if whole is None:
                raise _disagree("chosen and rejected begin with different questions")
            return whole
        return dialogue[:-1], chosen, rejected
    count = len(dialogue) - 1
    if count and all(len(side) > count and _is_same(side[:count], dialogue[:count]) for side in sides):
        return dialogue[:count], chosen, rejected  # the whole conversation with a third answer
    for side in sides:
        if side[0]["role"] == "assistant" and _is_same(dialogue[-len(side) :], side):
            return dialogue[: -len(side)], chosen, rejected
    last, firsts = dialogue[-1], [side[0] for side in sides]
    beginning = last["content"].rstrip()
    if beginning and all(first["role"] == "assistant" and first["content"].startswith(beginning) for first in firsts):
        chosen, rejected = ([_continuing(side[0], last["content"]), *side[1:]] for side in sides)
    return dialogue, chosen, rejected


def _continuing(answer: Message, beginning: str) -> Message:
    text = answer["content"]
    if text.startswith(beginning):
        return {**answer, "content": text[len(beginning) :]}
    return {**answer, "content": text[len(beginning.rstrip()) :].lstrip()}  # the beginning ends in another blank


def _divided(dialogue: list[Message], side: list[Message], name: str) -> tuple[list[Message], list[Message]]:
    """Return the turns before the answer of one side, and the answer."""
    count = len(dialogue)
    if count and len(side) > count and _is_same(side[:count], dialogue):
        return dialogue, side[count:]
    if side[0]["role"] != "user":
        return dialogue, side
    for start in range(1, count):  # the end of the prompt, from a question on
        turns = dialogue[start:]
        if turns[0]["role"] == "user" and len(side) > len(turns) and _is_same(side[: len(turns)], turns):
            return dialogue, side[len(turns) :]
    for end in range(count + 1, len(side)):
        if count and _is_same(side[end - count : end], dialogue):
            return side[:end], side[end:]
    if not dialogue or dialogue[-1]["role"] == "assistant":
        question = list(takewhile(lambda turn: turn["role"] != "assistant", side))
        if not any(_is_same(question[:1], [turn]) for turn in dialogue):
            return [*dialogue, *question], side[len(question) :]
    raise _disagree(f"{name} begins with the user's turn {shown(side[0]['content'])} and goes on unlike the prompt")


def _require_answers(chosen: list[Message], rejected: list[Message]) -> None:
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if side[0]["role"] not in ("assistant", "tool", "function"):
            raise _disagree(
                f"the answer of {name} begins with the {side[0]['role']}'s turn {shown(side[0]['content'])}, which the"
                " other side has not"
            )


def _one_system(*systems: list[Message]) -> list[Message]:
    """Return the system messages that one or several parts begin with; different ones are a ``RowError``."""
    given = [system for system in systems if system]
    for other in given[1:]:
        if not _is_same(other, given[0]):
            first, second = (shown(part[0]["content"]) for part in (given[0], other))
            raise _disagree(f"they have different system messages, {first} and {second}")
    return given[0] if given else []


def _split_system(messages: list[Message]) -> tuple[list[Message], list[Message]]:
    count = sum(1 for _ in takewhile(lambda message: message["role"] in SYSTEM_ROLES, messages))
    return messages[:count], messages[count:]


def _key(message: Message) -> tuple:
    """Return what makes two messages the same turn: blanks around the text, names and the like do not count."""
    role = "system" if message["role"] in SYSTEM_ROLES else message["role"]
    return role, message["content"].strip(), message.get("tool_calls") or None


def _is_same(first: Sequence[Message], second: Sequence[Message]) -> bool:
    return [_key(turn) for turn in first] == [_key(turn) for turn in second]


def _disagree(found: str) -> RowError:
    return RowError(
        "prompt and answers disagree",
        f"{found}; give each turn once: the question and what is before it in prompt, the answers alone in chosen and"
        " rejected",
    )


def shown(text: str) -> str:
    """Return a text in quotes, shortened, as messages quote it."""
    return repr(text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]} ...")
