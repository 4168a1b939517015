"""Say what a model for a chat does: one interface to transformers (``with_transformers``) and to llama.cpp.

messages --render--> text --tokenize--> ids --generate--> ids of the answer, one by one --decode--> text
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from jinja2.exceptions import TemplateError

from ...data.formats import Message
from ...errors import ConfigError, ModelError

DEFAULT_MAX_NEW_TOKENS = 512


@dataclass(frozen=True)
class Sampling:
    """Settings for sampling answers; a value out of range raises ``ConfigError``."""

    # 0 takes the likeliest token each time; ``None`` follows the model's generation settings, and is 0 without any
    temperature: float | None = None
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS  # length at which an answer is cut
    seed: int = 0  # the same conversation with the same seed gets the same answer

    def __post_init__(self) -> None:
        if self.temperature is not None and not 0 <= self.temperature <= 100:
            raise ConfigError(f"temperature is {self.temperature}; expected a number from 0 (greedy), such as 0.7")
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {self.max_new_tokens}; expected 1 or more")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed is {self.seed}; expected a whole number from 0 to 4294967295")


class ChatBackend(Protocol):
    """A model that answers."""

    name: str  # as given by the user
    has_template: bool  # otherwise texts are continued as they stand
    context_tokens: int | None  # limit of prompt and answer together, if the model states one
    own_temperature: float  # of the model's own generation settings, 0 for greedy

    def render(self, messages: Sequence[Message]) -> str:
        """Render the conversation with the chat template, open for an answer; what it refuses is a ``ModelError``."""

    def tokenize(self, text: str) -> list[int]:
        """Tokenize a rendered conversation; a begin token is added only where no chat template writes it."""

    def decode(self, ids: Sequence[int]) -> str:
        """Decode an answer; half a character at its end becomes U+FFFD."""

    def generate(self, ids: Sequence[int], sampling: Sampling) -> Iterator[int]:
        """Yield the tokens of the answer without the one that ends it. Closing the iterator ends the computation."""

    def close(self) -> None:
        """Release the model's memory."""


@contextmanager
def clear_refusal(name: str) -> Iterator[None]:
    """Turn a refusal of a chat template into a ``ModelError`` with the template's message."""
    try:
        yield
    except (TemplateError, TypeError, ValueError) as error:
        raise ModelError(f"{name}: its chat template refuses this conversation: {error}") from error
