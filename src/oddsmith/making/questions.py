"""Read the prompts that are to be answered, from whatever holds prompts (``data/prompts.py``).

A prompt of plain text, also that of a pair, is the message of a user. Of MT-Bench's questions the first turn is asked:
what follows in it would follow on one answer, and a pair has two.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..data.formats.messages import SYSTEM_ROLES, Message
from ..data.prompts import Prompt, read_prompts
from ..errors import DataError
from ..system.strict_json import strict
from .records import Question


@dataclass(frozen=True)
class Questions:
    """The prompts of a file or dataset."""

    asked: list[Question]
    repeated: int  # prompts that are there twice are asked once
    follow_ups: int  # further turns that are not asked

    def digest(self) -> str:
        """Return what tells these questions, in their order, from others."""
        return hashlib.sha256("\n".join(question.key for question in self.asked).encode()).hexdigest()[:20]


def read_questions(
    name: str,
    *,
    split: str = "train",
    columns: Any = None,
    config: str | None = None,
    system_prompt: str | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Questions:
    """Read the prompts of a file or dataset; errors are those of ``read_prompts``.

    Args:
        name: A text file with a prompt a line, or what training reads: files, folders, hub datasets.
        split: A split of it, or a slice of one.
        columns: The setting, for columns of other names: ``prompt=question``.
        config: Configuration of a hub dataset.
        system_prompt: System message for prompts that have none.
        limit: Take so many rows, drawn with the seed, in their order.
        seed: Of the drawing.

    Returns:
        The questions; ``DataError`` where there are none.
    """

    def choose(count: int) -> Iterable[int]:
        if limit is None or limit >= count:
            return range(count)
        return sorted(random.Random(seed).sample(range(count), limit))

    prompts = read_prompts(name, split, columns, config=config, choose=choose, undecided=True)
    if not prompts:
        raise DataError(f"{name}: holds no prompts; expected rows with a prompt, or a prompt a line")
    asked: dict[str, Question] = {}
    for prompt in prompts:
        question = question_of(prompt, system_prompt)
        asked.setdefault(question.key, question)
    return Questions(list(asked.values()), len(prompts) - len(asked), sum(len(p.follow_ups) for p in prompts))


def question_of(prompt: Prompt, system_prompt: str | None = None) -> Question:
    """Return the question that a prompt asks; a system message is put in front where it has none."""
    opening = prompt.opening
    messages = [{"role": "user", "content": opening}] if isinstance(opening, str) else list(opening)
    if system_prompt and not any(message["role"] in SYSTEM_ROLES for message in messages):
        messages = [{"role": "system", "content": system_prompt}, *messages]
    return Question(key_of(messages), messages, prompt.row)


def key_of(messages: Sequence[Message]) -> str:
    """Return the key of a question: a digest of its messages."""
    return hashlib.sha256(json.dumps(strict(messages), sort_keys=True).encode()).hexdigest()[:20]
