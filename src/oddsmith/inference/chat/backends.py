"""Run a model for a chat: one interface to transformers (``TransformersBackend``) and llama.cpp (``GgufBackend``).

messages --render--> text --tokenize--> ids --generate--> ids of the answer, one by one --decode--> text
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from jinja2.exceptions import TemplateError
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from ...data.formats import Message
from ...data.templates.environment import guard_chat_templates
from ...data.tokens.content_parts import as_template_reads
from ...errors import ConfigError, ModelError
from ...export.gguf.llama_cpp import GgufModel
from ...export.gguf.trial import require_survivable
from ...model.generation import context_length, end_tokens, stream
from ...model.loading.gguf import SPECIAL_TOKENS
from ...model.loading.gguf_header import check_gguf
from ...model.loading.place import is_gguf, locate
from ..loading import load_for_inference

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


def open_backend(name: str) -> ChatBackend:
    """Load a model to chat with: llama.cpp runs a GGUF file, transformers everything else.

    ``name`` is a run, a model folder, an adapter, a hub id, ``builtin:...`` or a GGUF file. Raise ``ModelError`` where
    nothing is there or it does not generate text, and ``MissingExtraError`` where a GGUF file or a base in 4 bits needs
    an extra that is not installed.
    """
    place = locate(name)
    return GgufBackend(name, place) if is_gguf(place) else TransformersBackend(name, *load_for_inference(name))


class TransformersBackend:
    """Run a causal or encoder-decoder model, with or without an adapter, in transformers; see ``ChatBackend``."""

    def __init__(self, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        self.name, self.model, self.tokenizer = name, model, tokenizer
        self.has_template = tokenizer.chat_template is not None
        self.context_tokens = context_length(model, tokenizer)
        settings = model.generation_config
        self.own_temperature = float(settings.temperature or 1.0) if settings.do_sample else 0.0
        self._end_ids = end_tokens(model, tokenizer)

    def render(self, messages: Sequence[Message]) -> str:
        with _clear_refusal(self.name):
            messages = as_template_reads(self.tokenizer, messages)
            return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def tokenize(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=not self.has_template).input_ids

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def generate(self, ids: Sequence[int], sampling: Sampling) -> Iterator[int]:
        return stream(
            self.model,
            self.tokenizer,
            ids,
            end_ids=self._end_ids,
            max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            seed=sampling.seed,
        )

    def close(self) -> None:
        """Do nothing: Python frees the model with its last reference."""


class GgufBackend:
    """Run a GGUF file in llama.cpp; see ``ChatBackend``. Its chat template runs in the sandbox of all templates."""

    own_temperature = 0.0

    def __init__(self, name: str, path: str):
        guard_chat_templates()
        self.name = name
        check_gguf(Path(path))
        require_survivable(Path(path))
        self.model = GgufModel(path)
        self.context_tokens: int | None = self.model.context_length
        self.has_template = self.model.chat_template is not None
        self._special_tokens = {key: self._token(kind) for key, kind in SPECIAL_TOKENS.items()}

    def _token(self, kind: str) -> str:
        """Return a special token's text; empty where the file names none."""
        token_id = self.model.metadata.get(f"tokenizer.ggml.{kind}_token_id")
        return "" if token_id is None else self.model.detokenize([int(token_id)], special=True).decode(errors="replace")

    def render(self, messages: Sequence[Message]) -> str:
        template, special = self.model.chat_template, self._special_tokens
        with _clear_refusal(self.name):
            texts, _ = render_jinja_template(
                [list(messages)], chat_template=template, add_generation_prompt=True, **special
            )
        return texts[0]

    def tokenize(self, text: str) -> list[int]:
        return self.model.tokenize(text, begin=not self.has_template)

    def decode(self, ids: Sequence[int]) -> str:
        return self.model.detokenize(ids).decode(errors="replace")

    def generate(self, ids: Sequence[int], sampling: Sampling) -> Iterator[int]:
        return self.model.generate(
            ids,
            max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature or 0.0,
            seed=sampling.seed,
        )

    def close(self) -> None:
        self.model.close()


@contextmanager
def _clear_refusal(name: str) -> Iterator[None]:
    """Turn a refusal of a chat template into a ``ModelError`` with the template's message."""
    try:
        yield
    except (TemplateError, TypeError, ValueError) as error:
        raise ModelError(f"{name}: its chat template refuses this conversation: {error}") from error
