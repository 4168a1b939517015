"""State how answers are drawn, and what those who answer hand over."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from ...errors import ConfigError
from ..records import Answer, Question

MAX_SAMPLES = 1000


@dataclass(frozen=True)
class Drawing:
    """How answers are drawn; a value out of range raises ``ConfigError``."""

    samples: int = 8  # answers of each model to a prompt
    temperature: float = 0.8  # 0 takes the likeliest token each time
    top_p: float = 0.95  # draw only from the likeliest tokens that have this probability together
    max_new_tokens: int = 512  # length at which an answer is cut
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.samples <= MAX_SAMPLES:
            raise ConfigError(f"samples is {self.samples}; expected a number from 1 to {MAX_SAMPLES:,}")
        if not 0 <= self.temperature <= 100:
            raise ConfigError(f"temperature is {self.temperature}; expected a number from 0 (greedy), such as 0.8")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}; expected a number above 0, at most 1 (draw from all tokens)")
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {self.max_new_tokens}; expected 1 or more")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed is {self.seed}; expected a whole number from 0 to 4294967295")
        if self.temperature == 0 and self.samples > 1:
            raise ConfigError(
                f"temperature is 0, so the {self.samples} answers of a model to a prompt would be the same; raise it,"
                " or give --samples 1 and several models"
            )

    def seed_of(self, question: Question, sample: int) -> int:
        """Return the seed of one answer, below 2^31: servers take no larger one."""
        digest = hashlib.sha256(f"{self.seed} {question.key} {sample}".encode()).digest()
        return int.from_bytes(digest[:4], "big") >> 1


@dataclass(frozen=True)
class Unanswered:
    """A question that a model cannot answer, however often it is asked."""

    question: str  # its key
    model: str
    sample: int
    reason: str  # as a short phrase that can be counted


Known = Container[tuple[str, int]]  # keys of questions, and samples, that need not be asked for


class Answerer(Protocol):
    """A model, or a file of answers."""

    name: str

    def answers(self, questions: Sequence[Question], known: Known) -> Iterator[Answer | Unanswered]:
        """Answer all questions but what is known, as they come, in any order.

        Args:
            questions: All of them, in the same order each time: those that are computed together depend on it.
            known: What is not asked for.

        Returns:
            The answers.

        Raises:
            OddsmithError: It cannot go on at all.
        """
        ...


def wanted(questions: Sequence[Question], samples: int, known: Known) -> Iterator[tuple[Question, int]]:
    """Yield what is not known: the samples of a question follow each other."""
    for question in questions:
        yield from ((question, sample) for sample in range(samples) if (question.key, sample) not in known)
