"""Run GGUF files in llama.cpp (the wheel ``cyllama``): tokens, logits and answers. Needs no torch."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import numpy as np

from ...errors import MissingExtraError, ModelError
from ...model.loading.gguf_header import check_gguf
from ...system.machine import usable_cores

# Tokens per call; llama.cpp keeps the logits of all of them, float32.
BATCH_TOKENS = 512
# The longest default context. Its memory is reserved at the start: 90 MB for 135M parameters.
DEFAULT_CONTEXT_TOKENS = 4096
# How often a thread of llama.cpp (GNU's OpenMP) looks whether the others are done before it sleeps. By default it looks
# for milliseconds, while the one that it waits for may need its core: beside other processes on two cores 1,181 tokens
# of SmolLM2 135M took 30 s with this, 67 s with 20,000, and more than 100 s with the default of 300,000. With nothing
# else running they took 5.4 s with this and 5.6 s with the default.
LOOKS_BEFORE_SLEEP = "1000"

LOG_LEVEL_ERROR = 4  # GGML_LOG_LEVEL_ERROR in ggml.h
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def load_cyllama(what: str = "running a GGUF file") -> Any:
    """Return the module ``cyllama.llama.llama_cpp``, with llama.cpp's log on stderr switched off.

    Where it is not installed, ``MissingExtraError`` names the install command and ``what`` needs it; on a processor for
    which there is no wheel, it says so.
    """
    try:
        with waiting_briefly():
            from cyllama.llama import llama_cpp
    except ImportError as error:
        if sys.platform == "linux" and platform.machine() != "x86_64":  # the marker of the extra in pyproject.toml
            reason = f"there is no wheel of llama.cpp (cyllama) for Linux on this processor, {platform.machine()}"
            raise MissingExtraError(what, otherwise=reason) from error
        raise MissingExtraError(what, "gguf") from error
    llama_cpp.disable_logging()
    return llama_cpp


@contextmanager
def waiting_briefly() -> Iterator[None]:
    """Let the threads of a library that is imported meanwhile sleep soon when they wait, unless the user has chosen.

    The library reads the environment when it is loaded; others that are loaded later, such as torch's, keep their own.
    """
    if {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        yield
        return
    os.environ["GOMP_SPINCOUNT"] = LOOKS_BEFORE_SLEEP
    try:
        yield
    finally:
        del os.environ["GOMP_SPINCOUNT"]


class GgufModel:
    """An open GGUF file in llama.cpp, for one conversation or measurement at a time; a context manager.

    Args:
        path: The ``.gguf`` file.
        context_length: Most tokens of prompt and answer together; by default what the model was trained for, up to
            4,096.
        threads: Number of threads; by default ``available_processors()``.

    Attributes:
        vocabulary_size: Tokens in the vocabulary, and logits at each position.
        end_ids: The tokens that end an answer, such as end of turn and end of text.
        begin_id: The begin token, if texts start with one.
        trained_tokens: Most tokens in a text that the model was trained on.
        context_length: Most tokens of prompt and answer together.

    Raises:
        MissingExtraError: ``cyllama`` is not installed.
        ModelError: The file is missing, cut off or damaged, or llama.cpp does not know its architecture.
    """

    def __init__(self, path: str | Path, *, context_length: int | None = None, threads: int | None = None) -> None:
        self.path = Path(path)
        library = load_cyllama()
        if not self.path.is_file():
            raise ModelError(f"{self.path}: no file is there; expected a .gguf file")
        check_gguf(self.path)
        self._library = library
        self._model = _load(library, self.path)
        self._vocabulary = vocabulary = self._model.get_vocab()
        self.vocabulary_size: int = vocabulary.n_vocab
        self.end_ids = frozenset(token for token in range(vocabulary.n_vocab) if vocabulary.is_eog(token))
        self.begin_id: int | None = vocabulary.token_bos() if vocabulary.get_add_bos() else None
        self.trained_tokens: int = self._model.n_ctx_train
        self.context_length = context_length or min(self.trained_tokens, DEFAULT_CONTEXT_TOKENS)
        self._context = self._new_context(threads or available_processors())
        self._seen: list[int] = []  # the tokens whose keys and values the context holds

    def _new_context(self, threads: int) -> Any:
        parameters = self._library.LlamaContextParams()
        parameters.n_ctx = self.context_length
        parameters.n_batch = parameters.n_ubatch = min(BATCH_TOKENS, self.context_length)
        parameters.n_threads = parameters.n_threads_batch = threads
        try:
            return self._library.LlamaContext(self._model, parameters)
        except (ValueError, RuntimeError, MemoryError) as error:
            raise ModelError(
                f"{self.path}: llama.cpp cannot make a context of {self.context_length:,} tokens for it;"
                " give a smaller context_length"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the memory; no other method may be called afterwards."""
        self._context.close()
        self._model.close()

    @property
    def metadata(self) -> Mapping[str, str]:
        """Return keys and values of the file as text, without lists."""
        metadata = self._model.metadata
        return metadata() if callable(metadata) else metadata  # a method in cyllama 0.2.18

    @property
    def chat_template(self) -> str | None:
        """Return the Jinja text of the chat template, if the file has one."""
        return self.metadata.get("tokenizer.chat_template")

    def tokenize(self, text: str, *, special: bool = True, begin: bool = False) -> list[int]:
        """Return the token ids of a text.

        With ``special``, a special token written out in the text, such as ``<|im_end|>``, becomes that token. With
        ``begin``, the begin token is put in front if the model was trained with one; a rendered chat template has its
        own.
        """
        return list(self._vocabulary.tokenize(text, begin, special)) if text else []

    def detokenize(self, ids: Sequence[int], *, special: bool = False) -> bytes:
        """Return the text of tokens in UTF-8, with special tokens if ``special``.

        A token may begin or end within a character, so decode a stream incrementally.
        """
        return b"".join(self._bytes_of(token, special) for token in ids)

    def _bytes_of(self, token: int, special: bool) -> bytes:
        piece = self._vocabulary.token_to_piece(token, 0, special)
        if "\ufffd" not in piece:
            return piece.encode()
        # Part of a character, which cyllama cannot return as text: read it from the vocabulary's notation of bytes.
        text = self._vocabulary.get_text(token)
        if match := BYTE_TOKEN.fullmatch(text):
            return bytes([int(match[1], 16)])
        letters = byte_letters()
        return bytes(letters[letter] for letter in text) if set(text) <= letters.keys() else text.encode()

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """Return the logits of the next token after each of T tokens, float32 ``[T, vocabulary_size]``."""
        self._require_room(len(ids), 0)
        self._forget()
        rows = np.empty((len(ids), self.vocabulary_size), np.float32)
        for start in range(0, len(ids), BATCH_TOKENS):
            chunk = ids[start : start + BATCH_TOKENS]
            self._decode(chunk, every_logit=True)
            for i in range(len(chunk)):
                rows[start + i] = self._context.get_logits_ith(i)
        return rows

    def generate(
        self, ids: Sequence[int], *, max_new_tokens: int, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0
    ) -> Iterator[int]:
        """Generate an answer. Leading tokens that the prompt shares with the previous one are not computed again.

        Args:
            ids: Tokens of the prompt.
            max_new_tokens: The answer ends after so many tokens, and when the context is full.
            temperature: 0 takes the likeliest token each time.
            top_p: Sample only from the likeliest tokens that have this probability together.
            seed: Seed of the sampling.

        Yields:
            int: Token ids, without the token that ends the answer.

        Raises:
            ModelError: The prompt fills the context.
        """
        self._require_room(len(ids), 1)
        sampler = self._sampler(temperature, top_p, seed)
        shared = next((i for i, (old, new) in enumerate(zip(self._seen, ids, strict=False)) if old != new), None)
        if shared is None:
            shared = min(len(self._seen), len(ids) - 1)  # the last token is computed again, for its logits
        for start in range(self._forget(shared), len(ids), BATCH_TOKENS):
            self._decode(ids[start : start + BATCH_TOKENS])
        for _ in range(max_new_tokens):
            token = sampler.sample(self._context, -1)
            if token in self.end_ids:
                return
            yield token
            if len(self._seen) == self.context_length:
                return
            self._decode([token])

    def _sampler(self, temperature: float, top_p: float, seed: int) -> Any:
        sampler = self._library.LlamaSampler(self._library.LlamaSamplerChainParams())
        if temperature <= 0:
            sampler.add_greedy()
            return sampler
        if top_p < 1:
            # The least likely token that may be drawn, and all less likely ones, have at least 1 - top_p together: it
            # has at least that divided by the size of the vocabulary. Far less likely tokens need not be sorted.
            sampler.add_min_p((1 - top_p) / self.vocabulary_size / 100, 1)
            sampler.add_top_p(top_p, 1)
        sampler.add_temp(temperature)
        sampler.add_dist(seed)
        return sampler

    def _require_room(self, tokens: int, more: int) -> None:
        if tokens == 0:
            raise ModelError(f"{self.path}: nothing to compute: the prompt has no tokens")
        if tokens + more > self.context_length:
            raise ModelError(
                f"{self.path}: the prompt has {tokens:,} tokens, which leaves no room in the context of"
                f" {self.context_length:,}; shorten it, or give a larger context_length"
            )

    def _forget(self, keep: int = 0) -> int:
        """Drop the context after the first ``keep`` tokens, or all of it where the model cannot drop a part."""
        if keep == 0 or not self._context.memory_seq_rm(0, keep, -1):
            self._context.kv_cache_clear()
            keep = 0
        del self._seen[keep:]
        return keep

    def _decode(self, ids: Sequence[int], every_logit: bool = False) -> None:
        batch = self._library.LlamaBatch(n_tokens=len(ids), embd=0, n_seq_max=1)
        for i, token in enumerate(ids):
            batch.add(token, len(self._seen) + i, [0], every_logit or i == len(ids) - 1)
        try:
            self._context.decode(batch)
        except (ValueError, RuntimeError) as error:
            raise ModelError(f"{self.path}: llama.cpp cannot compute {len(ids)} tokens: {error}") from error
        finally:
            batch.close()
        self._seen.extend(ids)


def available_processors() -> int:
    """Return ``OMP_NUM_THREADS`` if it is set, else the number of processors that this process may use.

    llama.cpp's threads spin while they wait for each other, many times per token. With more threads than processors it
    is many times slower, so a limit that is set for the other libraries counts here too.
    """
    limit = os.environ.get("OMP_NUM_THREADS", "")
    if limit.isdecimal() and int(limit) > 0:
        return int(limit)
    return usable_cores()


def _load(library: Any, path: Path) -> Any:
    """Load a file; where that fails, raise ``ModelError`` with what llama.cpp logged."""

    class Model(library.LlamaModel):
        @property
        def n_vocab(self) -> int:
            """Provide the attribute that ``get_logits_ith`` of cyllama 0.2.18 reads, and its model lacks."""
            return self.get_vocab().n_vocab

    with logged_errors(library) as errors:
        try:
            return Model(str(path), library.LlamaModelParams())
        except (ValueError, RuntimeError, MemoryError, OSError) as error:
            reason = load_failure("\n".join(errors), "cyllama") or str(error)
            raise ModelError(f"{path}: llama.cpp cannot load it: {reason}") from error


def load_failure(log: str, package: str) -> str | None:
    """Return why llama.cpp could not load a file, by its log; ``package`` is the wheel that it is in.

    A family or a pre-tokenizer that it does not know is newer than the wheel. Return ``None`` where the log names no
    reason.
    """
    reasons = [
        line.rpartition("error loading model: ")[2] for line in log.splitlines() if "error loading model: " in line
    ]
    if not reasons:
        return None
    is_newer = "unknown model architecture" in reasons[0] or "unknown pre-tokenizer" in reasons[0]
    newer = f"; the llama.cpp in {package} {metadata.version(package)} is older than that" if is_newer else ""
    return reasons[0] + newer


@contextmanager
def logged_errors(library: Any) -> Iterator[list[str]]:
    """Collect the error lines that llama.cpp logs during the block; its exceptions say less."""
    errors: list[str] = []
    library.set_log_callback(lambda level, text: errors.append(text.strip()) if level == LOG_LEVEL_ERROR else None)
    try:
        yield errors
    finally:
        library.disable_logging()


@cache
def byte_letters() -> dict[str, int]:
    """Return the byte of each letter in byte-level vocabularies (GPT-2's: printable bytes are themselves)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
