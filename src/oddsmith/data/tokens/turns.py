"""Find the assistant's own turns in an answer of several: results of tools and turns of the user are no targets.

    <assistant>look()</turn><tool>wet</turn><assistant>It rains.</turn>
               [own turn   ][gap                      ][own turn       ]

The end of a turn and the beginning of the next are read off renderings that end there, as the prompt of a whole answer
is. A template may write an earlier turn otherwise once others follow (Qwen3 leaves its thoughts out), so these
renderings are not compared from their beginning: only from the last mark (marks.py) on, which stands behind the text
of the message that both have last.

    the answer    ... wet<7></turn><assistant>It rains.<8></turn>
    its opening   ... wet<7></turn><assistant>               both go on alike to where the turn begins
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import eq

from ..formats.values import common_prefix_length
from .marks import Marked, without_marks

Gap = tuple[int, int]  # first character, and one past the last


class TurnFinder:
    """Find the turns of the assistant in a rendered conversation.

    Args:
        marked: The conversation with marks.
        rendered: Its rendering, with marks.
        render: Renders some of its messages, with ``add_generation_prompt`` or without; None where the template refuses
            them.
        end_of_turn: The token with which the template ends a turn of the assistant; None where there is none.
        other_ends: The other tokens of the tokenizer with which a turn may end, such as Llama 3's after a call.
    """

    def __init__(
        self,
        marked: Marked,
        rendered: str,
        render: Callable[..., str | None],
        *,
        end_of_turn: str | None,
        other_ends: Sequence[str],
    ):
        self._marked, self._rendered, self._render = marked, rendered, render
        self._end_of_turn, self._other_ends = end_of_turn, other_ends

    def gaps(self, response_start: int) -> list[Gap] | None:
        """Return which characters of a response are not the assistant's own, in the rendering without marks.

        Args:
            response_start: Position of the first message of the response.

        Returns:
            The gaps in their order: each from one past the token that ends a turn to the beginning of the assistant's
            next turn; a response that begins with another role has a first gap from 0 on. None where a turn is not
            found.
        """
        messages = self._marked.messages
        own = [turn for turn in range(response_start, len(messages)) if messages[turn]["role"] == "assistant"]
        gaps = []
        for before, turn in zip([None, *own], own, strict=False):
            if turn == response_start:
                continue
            end, begin = 0 if before is None else self._end(before), self._begin(turn)
            if begin is None or end is None or begin < end:
                return None
            gaps.append((end, begin))
        if not self._are_apart(gaps, response_start):
            return None
        unmarked = [[len(without_marks(self._rendered[:place])) for place in gap] for gap in gaps]
        return [(end, begin) for end, begin in unmarked]

    def _are_apart(self, gaps: Sequence[Gap], response_start: int) -> bool:
        """Return whether all messages stand in their order, those of others in gaps and the assistant's outside."""
        marks = [mark for mark in self._marked.marks if mark.turn >= response_start and mark.text in self._rendered]
        places = sorted((self._rendered.find(mark.text), mark.turn) for mark in marks)
        turns = [turn for _, turn in places]
        is_own = [self._marked.messages[turn]["role"] == "assistant" for turn in turns]
        is_in_gap = [any(start <= place < end for start, end in gaps) for place, _ in places]
        return turns == sorted(turns) and not any(map(eq, is_own, is_in_gap))

    def _begin(self, turn: int) -> int | None:
        """Return where the text of an assistant's turn begins, after its header."""
        opening = self._render(self._marked.messages[:turn], add_generation_prompt=True)
        places = self._after_last_mark(opening, turn - 1)
        if places is None:
            return None
        following, after = places
        shared = common_prefix_length(following, after)
        return None if after.strip() and not shared else len(self._rendered) - len(following) + shared

    def _end(self, turn: int) -> int | None:
        """Return one past the token that ends an assistant's turn."""
        places = self._after_last_mark(self._render(self._marked.messages[: turn + 1]), turn)
        if places is None:
            return None
        following, after = places
        if not any(mark.turn == turn and mark.text in self._rendered for mark in self._marked.marks):
            # Its texts are not marked, so the mark is one before its header.
            header = (self._begin(turn) or 0) - (len(self._rendered) - len(following))
            if header < 0 or following[:header] != after[:header]:
                return None
            following, after = following[header:], after[header:]
        shared = common_prefix_length(following, after)
        end = _last_end(after[:shared], [self._end_of_turn] if self._end_of_turn else [])
        if end is None:
            end = _last_end(after[:shared], self._other_ends)
        if end is None:  # the last turn of all may end in another token
            token, other = (_first(text, self._other_ends) for text in (following, after))
            if other is not None and (token is None or token[0] != other[0] or token[0] > shared):
                return None
            end = shared if token is None or other is None else token[1]
        return len(self._rendered) - len(following) + end

    def _after_last_mark(self, other: str | None, turn: int) -> tuple[str, str] | None:
        """Return how the rendering, and another one, go on after the last mark of the messages up to ``turn``."""
        if other is None:
            return None
        (mark, start), (same, other_start) = (self._marked.end_of(text, turn) for text in (self._rendered, other))
        return (self._rendered[start:], other[other_start:]) if mark and mark == same else None


def _last_end(text: str, tokens: Sequence[str]) -> int | None:
    """Return one past the token that ends last in a text."""
    return max((text.rfind(token) + len(token) for token in tokens if token in text), default=None)


def _first(text: str, tokens: Sequence[str]) -> Gap | None:
    """Return where the token that stands first in a text begins and ends, the longest of several at one place."""
    places = [(text.find(token), len(token)) for token in tokens if token in text]
    start, length = min(places, key=lambda place: (place[0], -place[1]), default=(0, 0))
    return (start, start + length) if length else None
