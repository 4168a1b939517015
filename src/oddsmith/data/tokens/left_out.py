"""Find what a chat template leaves out of a conversation: every text of it is marked, and some marks are not rendered.

    marked     {"content": "Let me look.<0>", "tool_calls": [{"name": "rain<1>", "arguments": {"city": "Rome<2>"}}]}
    rendered   "<|im_start|>assistant\\nLet me look.<0><|im_end|>\\n"      so <1> and <2>, the call, are left out

Where the template decides otherwise with marks, the texts themselves are looked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ..formats import Message
from .marks import NAMES, NOT_TEXT, Marked, without_marks


class LeftOut(NamedTuple):
    """What a template leaves out of one side of a pair."""

    parts: frozenset[str] = frozenset()  # such as ``"thoughts in chosen"``; a dataset's report counts them
    is_turn_empty: bool = False  # whether a turn of the answer's assistant lost all that it had


def may_lack_something(messages: Sequence[Message], tools: Sequence[Any] | None, text: str) -> bool:
    """Return whether a rendering has to be searched; most need not be.

    Most conversations hold nothing but contents, and all of these are found in the rendering, one after the other.
    """
    if tools or any(set(message) - {"role", "content", *NOT_TEXT} for message in messages):
        return True
    position = 0
    for message in messages:
        content = message["content"]
        if isinstance(content, str) and (content := content.strip()):
            position = text.find(content, position)
            if position < 0:
                return True
            position += len(content)
    return False


def left_out(marked: Marked, rendered: str | None, text: str, *, side: str, response_start: int) -> LeftOut:
    """Return what the rendering of a conversation lacks.

    Args:
        marked: The conversation with marks; with tools where these are to be looked for.
        rendered: Its rendering; None where the template refuses it.
        text: The rendering without marks.
        side: ``"chosen"`` or ``"rejected"``.
        response_start: Position of the first message of the response.

    Returns:
        The parts that are left out.
    """
    if rendered is not None and without_marks(rendered) == text:
        lost = {mark for mark in marked.marks if mark.text not in rendered}
    else:
        lost = {mark for mark in marked.marks if mark.is_lost_in(text)}
    kept_turns = {mark.turn for mark in marked.marks - lost}
    parts = {f"{mark.kind} in {side if mark.turn >= response_start else 'prompt'}" for mark in lost if mark.turn >= 0}
    if any(mark.turn < 0 for mark in lost) and -1 not in kept_turns:
        parts.add("tools")
    had = {mark.turn for mark in marked.marks if mark.kind != NAMES and mark.turn >= response_start}
    empty = {turn for turn in had - kept_turns if marked.messages[turn]["role"] == "assistant"}
    return LeftOut(frozenset(parts), bool(empty))
