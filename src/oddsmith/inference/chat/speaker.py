"""Who answers in a chat: one interface to a model that transformers runs and to a GGUF file that llama.cpp runs.

messages --render--> text --tokenize--> ids --generate--> ids of the answer, one by one --decode--> text
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from ...data.formats import Message
from ...errors import ConfigError

DEFAULT_MAX_NEW_TOKENS = 512


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn.

    Args:
        temperature: 0 takes the likeliest token each time; ``None`` does what the model's own generation settings say,
            and takes the likeliest where they say nothing.
        max_new_tokens: Where an answer is cut that does not end by itself.
        seed: Of the drawing. The same conversation with the same seed gets the same answer.

    Raises:
        ConfigError: A value is out of range.
    """

    temperature: float | None = None
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature is not None and not 0 <= self.temperature <= 100:
            raise ConfigError(f"temperature is {self.temperature}; expected a number from 0 (greedy), such as 0.7")
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {self.max_new_tokens}; expected 1 or more")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed is {self.seed}; expected a whole number from 0 to 4294967295")


class Speaker(Protocol):
    """A model that answers.

    Attributes:
        name: What the user called it.
        has_template: Whether it has a chat template; otherwise texts are continued as they stand.
        context_tokens: Most tokens of prompt and answer together; ``None`` where the model states no limit.
        own_temperature: Temperature of the model's own generation settings, 0 for greedy.
    """

    name: str
    has_template: bool
    context_tokens: int | None
    own_temperature: float

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation as the chat template writes it, open for an answer."""

    def tokenize(self, text: str) -> list[int]:
        """Tokens of a rendered conversation."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of an answer's tokens; half a character at the end becomes U+FFFD."""

    def generate(self, ids: Sequence[int], sampling: Sampling) -> Iterator[int]:
        """Tokens of the answer without the one that ends it. Closing the iterator ends the computation."""

    def close(self) -> None:
        """Give the memory back."""
