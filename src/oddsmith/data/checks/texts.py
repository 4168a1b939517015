"""Extract the plain texts of a pair, without roles, templates and tokens, in the forms that the checks compare."""

from __future__ import annotations

from dataclasses import dataclass

from ..formats import PreferencePair
from ..formats.messages import Message

MAX_WORD_CHARACTERS = 20  # longer on average: a script without spaces between words


@dataclass(frozen=True)
class PairTexts:
    """The texts of a pair; messages are joined by line breaks."""

    prompt: str
    question: str  # the last message of the user, or the whole prompt where that is text
    chosen: str
    rejected: str

    @classmethod
    def of(cls, pair: PreferencePair) -> PairTexts:
        """Return the texts of a pair of strings or conversations."""
        prompt = _joined(pair.prompt)
        question = prompt
        if not isinstance(pair.prompt, str):
            question = next((turn["content"] for turn in reversed(pair.prompt) if turn["role"] == "user"), "")
        return cls(prompt, question, _joined(pair.chosen), _joined(pair.rejected))

    def is_unicode(self) -> bool:
        """Return whether the texts can be written as UTF-8: none contains half of a surrogate pair."""
        try:
            for text in (self.prompt, self.chosen, self.rejected):
                text.encode()
        except UnicodeEncodeError:
            return False
        return True


def plain(text: str) -> str:
    """Return a text in lower case with single spaces, to compare wording alone."""
    return " ".join(text.casefold().split())


def words_or_characters(text: str) -> list[str] | str:
    """Return the words of a text, or the text itself where its script has no spaces between words."""
    words = text.split()
    return text if len(text) > MAX_WORD_CHARACTERS * max(1, len(words)) else words


def _joined(content: str | list[Message]) -> str:
    return content if isinstance(content, str) else "\n".join(message["content"] for message in content)
