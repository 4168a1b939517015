"""Who speaks after whom in a conversation."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from ..formats import PreferencePair
from ..formats.messages import SYSTEM_ROLES, Message
from . import catalogue
from .answers import Hit


def role_hits(pair: PreferencePair) -> Iterator[Hit]:
    """Faults in the order of speakers; a pair of texts has none.

    Args:
        pair: The pair.

    Yields:
        Hit: The check with what is wrong; both sides are read.
    """
    if isinstance(pair.prompt, str):
        return
    for answer in (pair.chosen, pair.rejected):
        if isinstance(answer, list):
            fault = role_fault([*pair.prompt, *answer])
            if fault:
                yield catalogue.ROLES, fault
                return


def role_fault(messages: list[Message]) -> str | None:
    """What is wrong with the order of speakers: system messages first, then user and assistant in turns.

    Tools may speak in between, and an assistant goes on after a tool.

    Args:
        messages: A whole conversation.

    Returns:
        A short phrase, or None.
    """
    roles = [message["role"] for message in messages]
    while roles and roles[0] in SYSTEM_ROLES:
        roles.pop(0)
    if roles and roles[0] != "user":
        return f"begins with the {roles[0]}"
    for before, role in pairwise(roles):
        if role in SYSTEM_ROLES:
            return "system message in the middle"
        if role == before and role in ("user", "assistant"):
            return f"two turns of the {role} in a row"
    return None
