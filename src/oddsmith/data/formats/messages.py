"""Read the messages of a conversation in the forms that datasets use.

    {"role": "user", "content": "Hi"}                                  as chat templates read it
    {"role": "user", "content": [{"type": "text", "text": "Hi"}]}      content in parts
    {"from": "human", "value": "Hi"}                                   ShareGPT

all become the first. Other keys (``tool_calls``, ``name``, ``reasoning_content``, ...) are kept for the template,
unless they are null.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from ...errors import RowError
from .values import checked_text, kind_of, without_nulls

Message = dict[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
SYSTEM_ROLES = ("system", "developer")

# Roles by their names in ShareGPT files. Source: the dataset formats of LLaMA-Factory and FastChat.
SHAREGPT_ROLES = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "observation": "tool",
}


def to_messages(value: Any, where: str, author: str = "assistant") -> list[Message]:
    """Read a list of messages, a single one, or the bare text of one, which gets the role ``author``.

    A value that is null or of another kind, or that holds a malformed message or an unknown role, is a ``RowError``
    that names the column ``where``.
    """
    if isinstance(value, list | tuple):
        return [_to_message(message, f"{where}[{position}]") for position, message in enumerate(value)]
    if isinstance(value, Mapping):
        return [_to_message(value, where)]
    if value is None:
        raise RowError("null value", f"{where} is null; expected text or messages")
    if not isinstance(value, str):
        reason = "response is not text" if author == "assistant" else "prompt is not text"
        raise RowError(reason, f"{where} is {kind_of(value)}; expected text or messages")
    return [{"role": author, "content": value}]


def _to_message(value: Any, where: str) -> Message:
    if not isinstance(value, Mapping):
        raise RowError("malformed message", f"{where} is {kind_of(value)}; expected an object with role and content")
    if value.get("role") is not None:
        role, content = _checked_role(value["role"], where), value.get("content")
        others = {key: without_nulls(item) for key, item in value.items() if key not in ("role", "content")}
    elif value.get("from") is not None:
        role, content, others = _checked_role(value["from"], where, SHAREGPT_ROLES), value.get("value"), {}
    else:
        keys = ", ".join(map(str, value)) or "none"
        raise RowError(
            "malformed message", f"{where} has the keys {keys}; expected role and content, or from and value"
        )
    if content is None and others.get("tool_calls"):
        content = ""
    message = {"role": role, "content": _joined_text(content, f"{where}.content")}
    return message | {key: item for key, item in others.items() if item is not None}


def _checked_role(role: Any, where: str, synonyms: Mapping[str, str] = MappingProxyType({})) -> str:
    """Return the role, or the role that it is a synonym of."""
    name = synonyms.get(role, role) if isinstance(role, str) else role
    if name in ROLES:
        return name
    nearest = get_close_matches(str(role).lower(), [*ROLES, *SHAREGPT_ROLES], n=1)
    hint = f"; did you mean {SHAREGPT_ROLES.get(nearest[0], nearest[0])!r}?" if nearest else ""
    raise RowError("unknown role", f"{where} has the role {role!r}; expected one of {', '.join(ROLES)}{hint}")


def _joined_text(content: Any, where: str) -> str:
    """Return the content as one text; text parts are joined without a separator."""
    if not isinstance(content, list | tuple):
        return checked_text(content, where, "malformed message")
    texts = []
    for position, part in enumerate(content):
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, Mapping) and part.get("type", "text") == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            found = f"of the type {part.get('type')!r}" if isinstance(part, Mapping) else kind_of(part)
            raise RowError("malformed message", f"{where}[{position}] is {found}; expected text alone")
    return "".join(texts)


def without_prompt(response: list[Message], prompt: list[Message]) -> list[Message]:
    """Return the response without a prompt that is repeated in front of it, with or without its system messages."""
    dialogue = [message for message in prompt if message["role"] not in SYSTEM_ROLES]
    for repeated in (prompt, dialogue):
        if repeated and len(response) > len(repeated) and response[: len(repeated)] == repeated:
            return response[len(repeated) :]
    return response


def is_blank(response: str | Sequence[Message]) -> bool:
    """Return whether a response is blank text, or its last turn has neither text, nor a tool call, nor reasoning."""
    if isinstance(response, str):
        return not response.strip()
    if not response:
        return True
    last = response[-1]
    has_more = any(value for key, value in last.items() if key not in ("role", "content", "name"))
    return not last["content"].strip() and not has_more
