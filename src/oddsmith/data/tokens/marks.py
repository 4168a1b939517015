"""Mark the texts of a conversation, so that their places in its rendering can be found.

    message    {"content": "Let me look.", "tool_calls": [{"name": "rain", "arguments": {"city": "Rome"}}]}
    marked     "Let me look.<0>"                           "rain<1>"                    "Rome<2>"

A mark stands behind a text, so that the template decides as it does without marks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
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


class Mark(NamedTuple):
    """A mark, and what it stands behind."""

    text: str
    turn: int  # position of the message; -1 for tools
    kind: str  # such as ``"thoughts"``
    marked: str  # the text in front of it

    def is_lost_in(self, rendering: str) -> bool:
        """Return whether a rendering without marks lacks the marked text, as it is and as JSON."""
        return self.marked not in rendering and json.dumps(self.marked, ensure_ascii=False)[1:-1] not in rendering


def without_marks(rendering: str) -> str:
    """Return a rendering of marked messages without the marks."""
    return ANY_MARK.sub("", rendering)


class Marked:
    """A conversation and its tools with marks.

    Args:
        messages: The conversation.
        tools: The tools of the row, if they are marked.
        only_contents: Whether other keys of the messages, such as calls of tools, stay without marks.
    """

    def __init__(self, messages: Sequence[Message], tools: Sequence[Any] | None = None, *, only_contents: bool = False):
        # By number; thoughts by their text: a message may have them under several keys, of which a template reads one
        self._known: dict[Any, Mark] = {}
        self._only_contents = only_contents
        self.messages = [self._message(message, turn) for turn, message in enumerate(messages)]
        self.tools = None if tools is None else [self._tool(tool) for tool in tools]
        self.marks = set(self._known.values())

    def end_of(self, rendering: str, turn: int) -> tuple[str, int]:
        """Return the last mark of the messages up to ``turn`` in a rendering, and where it ends; ``("", 0)``: none.

        Where a template repeats a text, such as the name of a tool in front of its result, the first place counts.
        """
        ends = [(rendering.find(mark.text), mark.text) for mark in self.marks if 0 <= mark.turn <= turn]
        start, text = max(ends, default=(-1, ""))
        return (text, start + len(text)) if start >= 0 else ("", 0)

    def _message(self, message: Message, turn: int) -> Message:
        marked = dict(message)
        for key, value in message.items():
            if key == "content" and isinstance(value, str):
                marked[key] = "".join(self._content(value, turn, message["role"]))
            elif key not in ("role", "content", *NOT_TEXT) and not self._only_contents:
                marked[key] = self._texts_in(value, turn, KINDS_OF_FIELDS.get(key, repr(key)))
        return marked

    def _tool(self, tool: Any) -> Any:
        """Mark the name and the description of a tool."""
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
            self._known[key] = Mark(MARK.format(len(self._known)), turn, kind, text.strip())
        end = len(text.rstrip())  # templates trim
        return text[:end] + self._known[key].text + text[end:]
