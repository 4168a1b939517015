"""Read the messages of a conversation in the forms that datasets use.

    {"role": "user", "content": "Hi"}                                  as chat templates read it
    {"role": "user", "content": [{"type": "text", "text": "Hi"}]}      content in parts
    {"from": "human", "value": "Hi"}                                   ShareGPT
    {"from": "function_call", "value": '{"name": ...}'}                a call of the assistant

all become the first, the last with ``tool_calls``. Other keys (``tool_calls``, ``name``, ``reasoning_content``, ...)
are kept for the template, unless they are null.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from ...errors import RowError
from .tool_calls import CALL_ROLES, as_function, calls_of_turn, read_tool_calls
from .values import checked_text, kind_of, without_nulls
from .written import written_messages

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
    "tool_response": "tool",
    "function_response": "tool",
    **dict.fromkeys(CALL_ROLES, "assistant"),
}
NAMES_OF_ROLES = frozenset((*ROLES, *SHAREGPT_ROLES))
MEDIA = re.compile("image|video|audio|file|media", re.IGNORECASE)


def to_messages(value: Any, where: str, author: str = "assistant") -> list[Message]:
    """Read a list of messages, a single one, or the bare text of one, which gets the role ``author``.

    Messages of the user may be written as text (see ``messages_of_text``); those of others are text as it is. A value
    that is null or of another kind, or that holds a malformed message or an unknown role, is a ``RowError`` that names
    the column ``where``.
    """
    if isinstance(value, str) and author == "user":
        found = messages_of_text(value, where)
        value = value if found is None else found
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


def messages_of_text(text: str, where: str, *, any_role: bool = False) -> Any:
    """Return the messages that are written as text, to be read by ``to_messages``; None where it is ordinary text.

    They have roles that are known, or with ``any_role`` any.
    """
    return written_messages(text, where, None if any_role else NAMES_OF_ROLES)


def _to_message(value: Any, where: str) -> Message:
    if isinstance(value, str) and isinstance(found := messages_of_text(value, where), Mapping):
        value = found
    if not isinstance(value, Mapping):
        raise RowError("malformed message", f"{where} is {kind_of(value)}; expected an object with role and content")
    role_key, content_key = ("from", "value") if value.get("role") is None else ("role", "content")
    if value.get(role_key) is None:
        keys = ", ".join(map(str, value)) or "none"
        raise RowError(
            "malformed message", f"{where} has the keys {keys}; expected role and content, or from and value"
        )
    name, content = value[role_key], value.get(content_key)
    others = {}
    if role_key == "role":
        others = {key: without_nulls(item) for key, item in value.items() if key not in ("role", "content")}
    if name in CALL_ROLES:
        content, others["tool_calls"] = calls_of_turn(content, f"{where}.{content_key}")
        name = "assistant"
    elif others.get("tool_calls"):
        others["tool_calls"] = read_tool_calls(others["tool_calls"], f"{where}.tool_calls")
    elif others.get("function_call"):  # as OpenAI's interface had it before tool_calls
        place = f"{where}.function_call"
        others["tool_calls"] = [
            as_function(call, place) for call in read_tool_calls(others.pop("function_call"), place)
        ]
    if content is None and others.get("tool_calls"):
        content = ""
    message = {
        "role": _checked_role(name, where, SHAREGPT_ROLES if role_key == "from" else {}),
        "content": _joined_text(content, f"{where}.content"),
    }
    return message | {key: item for key, item in others.items() if item is not None}


def _checked_role(role: Any, where: str, synonyms: Mapping[str, str]) -> str:
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
            named = isinstance(part, Mapping) and (part.get("type") or next(iter(part), None))
            found = f"of the type {named!r}" if isinstance(part, Mapping) else kind_of(part)
            reason = "image, sound or video" if MEDIA.search(found) else "malformed message"
            raise RowError(reason, f"{where}[{position}] is {found}; expected text alone")
    return "".join(texts)


def is_blank(response: str | Sequence[Message]) -> bool:
    """Return whether a response is blank text, or its last turn has neither text, nor a tool call, nor reasoning."""
    if isinstance(response, str):
        return not response.strip()
    if not response:
        return True
    last = response[-1]
    has_more = any(value for key, value in last.items() if key not in ("role", "content", "name"))
    return not last["content"].strip() and not has_more
