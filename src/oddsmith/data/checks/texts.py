"""The texts of a pair, as the checks read them: without roles, templates and tokens."""

from __future__ import annotations

from dataclasses import dataclass

from ..formats import PreferencePair
from ..formats.messages import Message

SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class PairTexts:
    """What is said in a pair.

    Args:
        prompt: All of the prompt, its messages one below the other.
        question: What the answers answer: the last message of the user, or the whole prompt where that is text.
        chosen, rejected: The answers, their messages one below the other.
    """

    prompt: str
    question: str
    chosen: str
    rejected: str

    @classmethod
    def of(cls, pair: PreferencePair) -> PairTexts:
        """The texts of a pair.

        Args:
            pair: Text or conversations.

        Returns:
            Its texts.
        """
        prompt = _said(pair.prompt)
        question = prompt if isinstance(pair.prompt, str) else _last_question(pair.prompt)
        return cls(prompt, question, _said(pair.chosen), _said(pair.rejected))

    def answers(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """The answers with the names of their sides."""
        return ("chosen", self.chosen), ("rejected", self.rejected)

    def is_unicode(self) -> bool:
        """Whether the texts can be written as UTF-8: none holds half of a surrogate pair."""
        try:
            for text in (self.prompt, self.chosen, self.rejected):
                text.encode()
        except UnicodeEncodeError:
            return False
        return True


def plain(text: str) -> str:
    """The text without what does not matter to what it says: case, and blanks beyond one between words."""
    return " ".join(text.casefold().split())


def _said(content: str | list[Message]) -> str:
    return content if isinstance(content, str) else "\n".join(message["content"] for message in content)


def _last_question(prompt: list[Message]) -> str:
    return next((message["content"] for message in reversed(prompt) if message["role"] == "user"), "")
