"""Hold a conversation with a model, from Python:

    with Conversation(open_backend("my-run")) as chat:  # of chat.backends
        for piece in chat.ask("What is ORPO?"):
            print(piece, end="", flush=True)

``oddsmith chat`` is the terminal around it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import NamedTuple

from ...data.formats import Message
from ...errors import ModelError
from .backends import ChatBackend, Sampling

UNFINISHED_CHARACTER = "\ufffd"


class Turn(NamedTuple):
    """A question and its answer."""

    question: str
    answer: str


class Conversation:
    """A conversation: the turns so far, and ``ask`` for the next one.

    A conversation that outgrows the model's context loses its oldest turns, never the system message; ``Answer`` says
    how many. A model without a chat template continues all texts in a row, one below the other. ``sampling`` and
    ``system``, the system message, may be replaced at any time.
    """

    def __init__(self, backend: ChatBackend, sampling: Sampling | None = None, system: str | None = None):
        self.backend = backend
        self.sampling = sampling or Sampling()
        self.system = system
        self.turns: list[Turn] = []

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        self.backend.close()

    @property
    def messages(self) -> list[Message]:
        """Return the system message and all turns, as messages with role and content."""
        messages: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        for question, answer in self.turns:
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return messages

    def reset(self) -> None:
        """Forget all turns; the system message stays."""
        self.turns.clear()

    def ask(self, question: str) -> Answer:
        """Return the answer to the user's next message; it is computed while it is iterated over.

        The turn joins the conversation when the answer has been read or stopped. Raise ``ModelError`` where the chat
        template refuses the conversation, or the message alone is longer than the context.
        """
        ids, dropped = self._tokens(question), 0
        limit = self.backend.context_tokens
        wanted = self.sampling.max_new_tokens
        if limit is not None:
            for_prompt = limit - min(wanted, limit // 4)
            while len(ids) > for_prompt and self.turns:
                del self.turns[0]
                dropped += 1
                ids = self._tokens(question)
            if len(ids) >= limit:
                raise ModelError(
                    f"the message has {len(ids):,} tokens, and {self.backend.name} reads at most {limit:,}; shorten it"
                )
            wanted = min(wanted, limit - len(ids))
        return Answer(self, question, ids, replace(self.sampling, max_new_tokens=wanted), dropped)

    def _tokens(self, question: str) -> list[int]:
        messages = [*self.messages, {"role": "user", "content": question}]
        if self.backend.has_template:
            return self.backend.tokenize(self.backend.render(messages))
        return self.backend.tokenize("\n".join(message["content"] for message in messages))


class Answer:
    """The answer to a question; iterating over it computes its text piece by piece."""

    def __init__(
        self, conversation: Conversation, question: str, ids: list[int], sampling: Sampling, dropped_turns: int
    ):
        self.prompt_tokens = len(ids)
        self.dropped_turns = dropped_turns  # forgotten to make room for the answer
        self.text, self.tokens = "", 0  # so far
        self.seconds = 0.0  # for all of the answer
        # "stop" where the model ended it, "length" where it was cut, or "interrupted"; empty before its end.
        self.finish_reason = ""
        self._conversation, self._question, self._ids, self._sampling = conversation, question, ids, sampling
        self._is_stopped = False
        self._pieces = self._run()

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def stop(self) -> None:
        """Stop after the token that is being computed; may be called from any thread or signal handler."""
        self._is_stopped = True

    def _run(self) -> Iterator[str]:
        start = time.perf_counter()
        backend, ids = self._conversation.backend, []
        try:
            with closing(backend.generate(self._ids, self._sampling)) as tokens:  # type: ignore[type-var]
                for token in tokens:
                    ids.append(token)
                    self.tokens = len(ids)
                    if piece := self._new_text(backend.decode(ids)):
                        yield piece
                    if self._is_stopped:
                        break
            if rest := self._new_text(backend.decode(ids), is_last=True):
                yield rest
            is_cut = len(ids) >= self._sampling.max_new_tokens
            self.finish_reason = "interrupted" if self._is_stopped else "length" if is_cut else "stop"
        finally:
            self.finish_reason = self.finish_reason or "interrupted"
            self.seconds = time.perf_counter() - start
            if self.text.strip():  # a question without an answer would break the template's alternation of roles
                self._conversation.turns.append(Turn(self._question, self.text))

    def _new_text(self, text: str, is_last: bool = False) -> str:
        """Return what ``text`` adds to the text so far; an incomplete character waits for its remaining bytes."""
        if text.endswith(UNFINISHED_CHARACTER) and not is_last:
            return ""
        new = text[len(self.text) :]
        self.text += new
        return new
