"""Find what a chat template leaves out of a conversation, by marking its texts and looking for the marks.

    message    {"content": "Let me look.", "tool_calls": [{"name": "rain", "arguments": {"city": "Rome"}}]}
    marked     "Let me look.<0>"                           "rain<1>"                    "Rome<2>"
    rendered   "<|im_start|>assistant\\nLet me look.<0><|im_end|>\\n"    so <1> and <2>, the call, are left out

A mark stands behind a text, so that the template decides as it does without marks; where it decides otherwise, the
texts themselves are looked for. Most conversations need no marks: they hold nothing but contents, and all of these are
found in the rendering, one after the other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..formats import Message

MARK = "Oddsmark{:05d}z"  # of letters and digits, which no filter of a template escapes
ANY_MARK = re.compile(r"Oddsmark\d{5}z")
# Where templates cut contents: at the tags of thoughts and the like.
TAG = re.compile(r"(</?[A-Za-z|][^<>\n]{0,40}>)")
THOUGHTS_END = re.compile(r"</(?:think|thinking|thought|thoughts|reasoning|seed:think)>")

NOT_TEXT = ("id", "type", "index", "tool_call_id")  # keys that no reader of the conversation would miss
NAMES, THOUGHTS = "names", "thoughts"
KINDS_OF_FIELDS = {
    "tool_calls": "calls of tools",
    "function_call": "calls of tools",
    "reasoning_content": THOUGHTS,
    "reasoning": THOUGHTS,
    "thinking": THOUGHTS,
    "name": NAMES,
}
KINDS_OF_ROLES = {
    "system": "system messages",
    "developer": "system messages",
    "user": "messages of the user",
    "assistant": "text of the assistant",
    "tool": "results of tools",
    "function": "results of tools",
}


class LeftOut(NamedTuple):
    """What a template leaves out of one side of a pair."""

    parts: frozenset[str] = frozenset()  # such as ``"thoughts in chosen"``; a dataset's report counts them
    is_turn_empty: bool = False  # whether a turn of the answer's assistant lost all that it had


class _Mark(NamedTuple):
    text: str
    turn: int  # position of the message; -1 for tools
    kind: str
    marked: str  # the text in front of it

    def is_lost_in(self, rendering: str) -> bool:
        """Return whether a rendering without marks lacks the marked text, as it is and as JSON."""
        return self.marked not in rendering and json.dumps(self.marked, ensure_ascii=False)[1:-1] not in rendering


def left_out(
    messages: Sequence[Message],
    tools: Sequence[Any] | None,
    text: str,
    render: Callable[[list[Message], list[Any] | None], str | None],
    *,
    side: str,
    response_start: int,
) -> LeftOut:
    """Return what the rendering ``text`` of a conversation lacks.

    Args:
        messages: The conversation, prompt and response.
        tools: The tools of the row; None where they need not be looked for.
        text: Its rendering.
        render: Renders messages and tools, which are marked ones; None where the template refuses them.
        side: ``"chosen"`` or ``"rejected"``.
        response_start: Position of the first message of the response.

    Returns:
        The parts that are left out.
    """
    has_fields = any(set(message) - {"role", "content", *NOT_TEXT} for message in messages)
    if not (has_fields or tools) and _holds_in_order(text, messages):
        return LeftOut()
    marking = _Marking()
    marked = [marking.message(message, turn) for turn, message in enumerate(messages)]
    rendered = render(marked, None if tools is None else [marking.tool(tool) for tool in tools])
    if rendered is not None and ANY_MARK.sub("", rendered) == text:
        lost = {mark for mark in marking.marks if mark.text not in rendered}
    else:
        lost = {mark for mark in marking.marks if mark.is_lost_in(text)}
    kept_turns = {mark.turn for mark in marking.marks - lost}
    parts = {_part(mark.kind, mark.turn, side, response_start) for mark in lost if mark.turn >= 0}
    if lost and marking.has_tools and -1 not in kept_turns:
        parts.add("tools")
    had = {mark.turn for mark in marking.marks if mark.kind != NAMES and mark.turn >= response_start}
    empty = {turn for turn in had - kept_turns if messages[turn]["role"] == "assistant"}
    return LeftOut(frozenset(parts), bool(empty))


def _part(kind: str, turn: int, side: str, response_start: int) -> str:
    return f"{kind} in {side if turn >= response_start else 'prompt'}"


def _holds_in_order(text: str, messages: Sequence[Message]) -> bool:
    position = 0
    for message in messages:
        content = message["content"]
        if isinstance(content, str) and (content := content.strip()):
            position = text.find(content, position)
            if position < 0:
                return False
            position += len(content)
    return True


class _Marking:
    """Put marks behind the texts of messages and tools, and list them."""

    def __init__(self) -> None:
        self.has_tools = False
        # By number; thoughts by their text: a message may have them under several keys, of which a template reads one
        self._known: dict[Any, _Mark] = {}

    @property
    def marks(self) -> set[_Mark]:
        """Return the marks so far."""
        return set(self._known.values())

    def message(self, message: Message, turn: int) -> Message:
        """Return a copy of a message with marks."""
        marked = dict(message)
        for key, value in message.items():
            if key == "content" and isinstance(value, str):
                marked[key] = "".join(self._content(value, turn, message["role"]))
            elif key not in ("role", "content", *NOT_TEXT):
                marked[key] = self._texts_in(value, turn, KINDS_OF_FIELDS.get(key, repr(key)))
        return marked

    def tool(self, tool: Any) -> Any:
        """Return a copy of a tool with a mark behind its name and its description."""
        self.has_tools = True
        if not isinstance(tool, Mapping):
            return tool
        function = tool["function"] if isinstance(tool.get("function"), Mapping) else tool
        marked = {
            key: self._marked(function[key], -1, "tools")
            for key in ("name", "description")
            if isinstance(function.get(key), str)
        }
        return {**tool, "function": {**function, **marked}} if function is not tool else {**tool, **marked}

    def _content(self, content: str, turn: int, role: str) -> Iterator[str]:
        """Yield a content in pieces, with a mark behind the text between two tags."""
        thoughts_end = max((match.start() for match in THOUGHTS_END.finditer(content)), default=0)
        position = 0
        for number, piece in enumerate(TAG.split(content)):
            is_thought = role == "assistant" and position < thoughts_end
            position += len(piece)
            if number % 2 or not piece.strip():  # a tag
                yield piece
            else:
                yield self._marked(piece, turn, THOUGHTS if is_thought else KINDS_OF_ROLES.get(role, role))

    def _texts_in(self, value: Any, turn: int, kind: str) -> Any:
        if isinstance(value, str):
            return self._marked(value, turn, kind) if value.strip() else value
        if isinstance(value, Mapping):
            return {key: item if key in NOT_TEXT else self._texts_in(item, turn, kind) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._texts_in(item, turn, kind) for item in value]
        return value

    def _marked(self, text: str, turn: int, kind: str) -> str:
        key = (turn, text) if kind == THOUGHTS else len(self._known)
        if key not in self._known:
            self._known[key] = _Mark(MARK.format(len(self._known)), turn, kind, text.strip())
        end = len(text.rstrip())  # templates trim
        return text[:end] + self._known[key].text + text[end:]
