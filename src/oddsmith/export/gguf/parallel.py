"""Run a GGUF file in llama.cpp for many prompts: several answers at once, each with random numbers of its own.

sequence 0 .. S-1    an answer that is being written each; one step of all of them is one batch of llama.cpp
sequence S           the prompt of the answers that are begun next, computed once and copied to each of them

Where an answer ends, the last sequence takes its place: llama.cpp computes a batch in one go only if the numbers of its
sequences follow each other, and in several otherwise, each of which reads all weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import ModelError
from .llama_cpp import BATCH_TOKENS, GgufModel


class Asked(NamedTuple):
    """A prompt to be answered once."""

    number: int  # comes back with the answer
    ids: Sequence[int]  # tokens of the prompt, one at least
    seed: int


class Written(NamedTuple):
    """An answer."""

    number: int
    ids: list[int]  # without the token that ends it
    is_finished: bool  # the model ended it; otherwise it was cut


@dataclass
class _Sequence:
    number: int
    position: int  # of the token that is computed next
    token: int
    sampler: Any
    ids: list[int] = field(default_factory=list)


class ParallelGguf(GgufModel):
    """An open GGUF file that writes several answers at once.

    Args:
        path: The ``.gguf`` file.
        sequences: How many answers at once.
        tokens: Most tokens of one prompt and its answer together.
        threads: Number of threads; by default ``available_processors()``.

    Raises:
        MissingExtraError: ``cyllama`` is not installed.
        ModelError: The file cannot be used, or there is no room for so many.
    """

    def __init__(self, path: str | Path, *, sequences: int, tokens: int, threads: int | None = None) -> None:
        self._sequences = sequences
        super().__init__(path, context_length=tokens, threads=threads)

    def _new_context(self, threads: int) -> Any:
        parameters = self._library.LlamaContextParams()
        parameters.n_seq_max = self._sequences + 1
        parameters.n_ctx = self.context_length * (self._sequences + 1)
        parameters.n_batch = parameters.n_ubatch = max(BATCH_TOKENS, self._sequences)
        parameters.n_threads = parameters.n_threads_batch = threads
        try:
            return self._library.LlamaContext(self._model, parameters)
        except (ValueError, RuntimeError, MemoryError) as error:
            raise ModelError(
                f"{self.path}: llama.cpp has no room for {self._sequences} answers at once of {self.context_length:,}"
                " tokens with their prompts; lower --batch-size or --max-new-tokens"
            ) from error

    def answers(
        self, asked: Iterable[Asked], *, max_new_tokens: int, temperature: float = 0.0, top_p: float = 1.0
    ) -> Iterator[Written]:
        """Answer prompts; those that are the same and follow each other are computed once.

        Args:
            asked: The prompts. None may have more than ``context_length`` tokens together with ``max_new_tokens``.
            max_new_tokens: An answer is cut after so many tokens.
            temperature: 0 takes the likeliest token each time.
            top_p: Draw only from the likeliest tokens that have this probability together.

        Yields:
            Written: The answers as they end, in any order.

        Raises:
            ModelError: llama.cpp cannot compute them.
        """
        waiting, prompt = iter(asked), Asked(-1, (), 0)
        writing: list[_Sequence] = []  # by the number of its sequence
        batch = self._library.LlamaBatch(n_tokens=max(BATCH_TOKENS, self._sequences), embd=0, n_seq_max=1)
        self._context.kv_cache_clear()
        try:
            while True:
                while len(writing) < self._sequences and (new := next(waiting, None)) is not None:
                    if new.ids != prompt.ids:
                        self._read_prompt(batch, new.ids[:-1])
                        prompt = new
                    self._copy(self._sequences, len(writing))
                    sampler = self._sampler(temperature, top_p, new.seed)
                    writing.append(_Sequence(new.number, len(new.ids) - 1, new.ids[-1], sampler))
                if not writing:
                    return
                self._run(batch, [(one.token, one.position, place, True) for place, one in enumerate(writing)])
                ended: list[int] = []
                for place, one in enumerate(writing):
                    one.token, one.position = one.sampler.sample(self._context, place), one.position + 1
                    if one.token not in self.end_ids:
                        one.ids.append(one.token)
                    if one.token in self.end_ids or len(one.ids) == max_new_tokens:
                        ended.append(place)
                for place in reversed(ended):
                    one, last = writing[place], writing.pop()
                    if last is not one:
                        writing[place] = last
                        self._copy(len(writing), place)
                    yield Written(one.number, one.ids, one.token in self.end_ids)
        finally:
            batch.close()

    def _read_prompt(self, batch: Any, ids: Sequence[int]) -> None:
        """Compute a prompt, less its last token, in the sequence that the others copy."""
        spare = self._sequences
        self._context.memory_seq_rm(spare, -1, -1)
        for start in range(0, len(ids), BATCH_TOKENS):
            chunk = ids[start : start + BATCH_TOKENS]
            self._run(batch, [(token, start + i, spare, False) for i, token in enumerate(chunk)])

    def _copy(self, sequence: int, place: int) -> None:
        self._context.memory_seq_rm(place, -1, -1)
        self._context.memory_seq_cp(sequence, place, -1, -1)

    def _run(self, batch: Any, tokens: Sequence[tuple[int, int, int, bool]]) -> None:
        """Compute tokens: each with its position, its sequence, and whether its logits are needed."""
        batch.reset()
        for token, position, sequence, has_logits in tokens:
            batch.add(token, position, [sequence], has_logits)
        try:
            self._context.decode(batch)
        except (ValueError, RuntimeError) as error:
            raise ModelError(f"{self.path}: llama.cpp cannot compute {len(tokens)} tokens: {error}") from error
