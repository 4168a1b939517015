"""Answer questions on this machine: transformers runs models and adapters, llama.cpp runs GGUF files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ...errors import ConfigError, ModelError
from ...export.gguf.parallel import Asked, ParallelGguf
from ...export.named_model import find_model
from ...inference.chat.backends import ChatBackend, open_backend
from ...inference.chat.with_llama_cpp import GgufBackend
from ...inference.chat.with_transformers import TransformersBackend
from ...model.generation import replies
from ...model.loading.adapter_base import fingerprint
from ...model.loading.place import is_gguf, locate
from ..records import Answer, Question, digest_of
from .drawing import Answerer, Drawing, Known, Unanswered, wanted

TOO_LONG = "prompt too long for the model"
REFUSED = "chat template refuses the prompt"
# Tokens of all answers that llama.cpp writes at once, with their prompts: their keys and values are reserved.
MAX_TOKENS_AT_ONCE = 65_536


def open_model(name: str, drawing: Drawing, batch_size: int) -> Answerer:
    """Load a model to answer with: a run, a folder, an adapter, a hub id, ``builtin:...`` or a GGUF file.

    ``batch_size`` answers are written at once. Errors are those of ``open_backend``.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; expected 1 or more")
    kind = LlamaCppAnswers if is_gguf(locate(name)) else TransformersAnswers
    return kind(name, drawing, batch_size)


def identity_of(name: str) -> str:
    """Return what tells a model's weights, and those of an adapter's base, from others; raise as ``find_model``."""
    named = find_model(name)
    found = [fingerprint(one) for one in (name, named.base) if one is not None]
    return digest_of(found)


class TransformersAnswers:
    """Answers of a model in transformers, in batches of prompts of similar length; see ``Answerer``.

    The same questions make the same batches, whatever of them is known, so that an answer is the same to the bit when a
    process goes on after another.
    """

    def __init__(self, name: str, drawing: Drawing, batch_size: int):
        self.name, self._drawing, self._batch_size = name, drawing, batch_size
        self._backend = open_backend(name, as_trained=True)

    def answers(self, questions: Sequence[Question], known: Known) -> Iterator[Answer | Unanswered]:
        backend, drawing = self._backend, self._drawing
        if not isinstance(backend, TransformersBackend):
            raise ModelError(f"{self.name}: has become a GGUF file meanwhile")
        prompts: dict[str, list[int]] = {}
        for question in questions:
            ids = tokens_of(backend, question, drawing)
            if isinstance(ids, str):
                yield from _unanswered(self.name, question, drawing, known, ids)
            else:
                prompts[question.key] = ids
        by_length = sorted((q for q in questions if q.key in prompts), key=lambda question: len(prompts[question.key]))
        plan = list(wanted(by_length, drawing.samples, ()))
        for start in range(0, len(plan), self._batch_size):
            batch = plan[start : start + self._batch_size]
            if all((question.key, sample) in known for question, sample in batch):
                continue
            replied = replies(
                backend.model,
                backend.tokenizer,
                [prompts[question.key] for question, _ in batch],
                max_new_tokens=drawing.max_new_tokens,
                temperature=drawing.temperature,
                top_p=drawing.top_p,
                seeds=[drawing.seed_of(*one) for one in batch],
                batch_size=len(batch),
            )
            for (question, sample), reply in zip(batch, replied, strict=True):
                if (question.key, sample) not in known:
                    yield Answer(question.key, self.name, sample, reply.text, reply.tokens, reply.is_finished)


class LlamaCppAnswers:
    """Answers of a GGUF file in llama.cpp, several at once; a prompt is computed once for all its answers."""

    def __init__(self, name: str, drawing: Drawing, batch_size: int):
        self.name, self._drawing, self._batch_size = name, drawing, batch_size
        self._place = locate(name)
        self._backend = GgufBackend(name, self._place)
        self._backend.context_tokens = self._backend.model.trained_tokens

    def answers(self, questions: Sequence[Question], known: Known) -> Iterator[Answer | Unanswered]:
        backend, drawing = self._backend, self._drawing
        asked: list[tuple[Question, int]] = []
        prompts: list[Asked] = []
        for question in questions:
            ids = tokens_of(backend, question, drawing)
            if isinstance(ids, str):
                yield from _unanswered(self.name, question, drawing, known, ids)
                continue
            for one in wanted([question], drawing.samples, known):
                prompts.append(Asked(len(asked), ids, drawing.seed_of(*one)))
                asked.append(one)
        if not asked:
            return
        longest = max(len(prompt.ids) for prompt in prompts) + drawing.max_new_tokens
        at_once = min(self._batch_size, len(asked), max(1, MAX_TOKENS_AT_ONCE // longest - 1))
        with ParallelGguf(Path(self._place), sequences=at_once, tokens=longest) as model:
            options = {"temperature": drawing.temperature, "top_p": drawing.top_p}
            for written in model.answers(prompts, max_new_tokens=drawing.max_new_tokens, **options):
                question, sample = asked[written.number]
                text = backend.decode(written.ids).strip()
                yield Answer(question.key, self.name, sample, text, len(written.ids), written.is_finished)


def tokens_of(backend: ChatBackend, question: Question, drawing: Drawing) -> list[int] | str:
    """Return the tokens of a question, or why the model cannot answer it.

    Without a chat template the texts of the messages follow each other, a line each.
    """
    try:
        if backend.has_template:
            ids = backend.tokenize(backend.render(question.messages))
        else:
            ids = backend.tokenize("\n".join(message["content"] for message in question.messages))
    except ModelError:
        return REFUSED
    limit = backend.context_tokens
    return TOO_LONG if limit is not None and len(ids) + drawing.max_new_tokens > limit else ids


def _unanswered(
    name: str, question: Question, drawing: Drawing, known: Known, reason: str
) -> Iterator[Answer | Unanswered]:
    for one, sample in wanted([question], drawing.samples, known):
        yield Unanswered(one.key, name, sample, reason)
