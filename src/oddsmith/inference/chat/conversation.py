"""A conversation with a model, from Python:

    with Conversation(open_speaker("my-run")) as chat:  # of chat.loading
        for piece in chat.ask("What is ORPO?"):
            print(piece, end="", flush=True)

The terminal around it is ``oddsmith chat``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from types import TracebackType
from typing import NamedTuple

from ...data.formats import Message
from ...errors import ModelError
from .speaker import Sampling, Speaker

UNFINISHED_CHARACTER = "\ufffd"


class Turn(NamedTuple):
    """A question and what was answered."""

    question: str
    answer: str


class Conversation:
    """What was said, and what the model says next.

    A conversation that outgrows the model's context loses its oldest turns, never the system message; ``Answer`` says
    how many. A model without a chat template continues all texts in a row, one below the other.

    Args:
        speaker: The model.
        sampling: How answers are drawn; may be replaced at any time.
        system: The system message.
    """

    def __init__(self, speaker: Speaker, sampling: Sampling | None = None, system: str | None = None):
        self.speaker = speaker
        self.sampling = sampling or Sampling()
        self.system = system
        self.turns: list[Turn] = []

    def __enter__(self) -> Conversation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.speaker.close()

    @property
    def messages(self) -> list[Message]:
        """All that was said, as messages with role and content."""
        messages: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        for question, answer in self.turns:
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return messages

    def reset(self) -> None:
        """Forget all turns; the system message stays."""
        self.turns.clear()

    def ask(self, question: str) -> Answer:
        """Ask something. The turn joins the conversation when the answer has been read, or stopped.

        Args:
            question: The user's message.

        Returns:
            The answer, computed while it is iterated over.

        Raises:
            ModelError: The chat template refuses the conversation, or the message alone is longer than the context.
        """
        ids, dropped = self._tokens(question), 0
        limit = self.speaker.context_tokens
        wanted = self.sampling.max_new_tokens
        if limit is not None:
            for_prompt = limit - min(wanted, limit // 4)
            while len(ids) > for_prompt and self.turns:
                del self.turns[0]
                dropped += 1
                ids = self._tokens(question)
            if len(ids) >= limit:
                raise ModelError(
                    f"the message has {len(ids):,} tokens, and {self.speaker.name} reads at most {limit:,}; shorten it"
                )
            wanted = min(wanted, limit - len(ids))
        return Answer(self, question, ids, replace(self.sampling, max_new_tokens=wanted), dropped)

    def _tokens(self, question: str) -> list[int]:
        messages = [*self.messages, {"role": "user", "content": question}]
        if self.speaker.has_template:
            return self.speaker.tokenize(self.speaker.render(messages))
        return self.speaker.tokenize("\n".join(message["content"] for message in messages))


class Answer:
    """An answer: iterate over it for its text, piece by piece, as it is computed.

    Args:
        conversation: Where the turn goes when it is over.
        question: The user's message.
        ids: Tokens of the prompt.
        sampling: How it is drawn.
        dropped_turns: Turns that had to be forgotten for it.

    Attributes:
        text: What was said so far.
        tokens: Their number of tokens.
        seconds: How long it took; from the first piece's beginning.
        finish_reason: ``"stop"`` where the model ended it, ``"length"`` where it was cut, ``"interrupted"``; empty
            before its end.
    """

    def __init__(
        self, conversation: Conversation, question: str, ids: list[int], sampling: Sampling, dropped_turns: int
    ):
        self.prompt_tokens, self.dropped_turns = len(ids), dropped_turns
        self.text, self.tokens, self.seconds, self.finish_reason = "", 0, 0.0, ""
        self._conversation, self._question, self._ids, self._sampling = conversation, question, ids, sampling
        self._is_stopped = False
        self._pieces = self._run()

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def stop(self) -> None:
        """End it after the token that is being computed. May be called from anywhere, also a signal handler."""
        self._is_stopped = True

    def _run(self) -> Iterator[str]:
        start = time.perf_counter()
        speaker, said = self._conversation.speaker, []
        try:
            with closing(speaker.generate(self._ids, self._sampling)) as tokens:  # type: ignore[type-var]
                for token in tokens:
                    said.append(token)
                    self.tokens = len(said)
                    if piece := self._new_text(speaker.decode(said)):
                        yield piece
                    if self._is_stopped:
                        break
            if rest := self._new_text(speaker.decode(said), is_last=True):
                yield rest
            is_cut = len(said) >= self._sampling.max_new_tokens
            self.finish_reason = "interrupted" if self._is_stopped else "length" if is_cut else "stop"
        finally:
            self.finish_reason = self.finish_reason or "interrupted"
            self.seconds = time.perf_counter() - start
            if self.text.strip():  # a question without an answer would break the template's alternation of roles
                self._conversation.turns.append(Turn(self._question, self.text))

    def _new_text(self, text: str, is_last: bool = False) -> str:
        """What ``text`` has more than was said so far; characters that are not whole yet wait for their other bytes."""
        if text.endswith(UNFINISHED_CHARACTER) and not is_last:
            return ""
        new = text[len(self.text) :]
        self.text += new
        return new
