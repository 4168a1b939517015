"""A GGUF file, run by llama.cpp; the template in it runs in the sandbox of ``template``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from ...data.formats import Message
from ...data.templates.environment import guard_chat_templates
from ...errors import ModelError
from ...export.gguf.llama_cpp import GgufModel
from .speaker import Sampling

SPECIAL_TOKENS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


class GgufSpeaker:
    """A GGUF file that answers; see ``Speaker``.

    Args:
        name: What to call it.
        path: The file.
    """

    own_temperature = 0.0

    def __init__(self, name: str, path: str):
        guard_chat_templates()
        self.name = name
        self.model = GgufModel(path)
        self.context_tokens: int | None = self.model.context_length
        self.has_template = self.model.chat_template is not None
        self._special_tokens = {key: self._token(kind) for key, kind in SPECIAL_TOKENS.items()}

    def _token(self, kind: str) -> str:
        """How a special token is written; empty where the file names none."""
        token_id = self.model.metadata.get(f"tokenizer.ggml.{kind}_token_id")
        return "" if token_id is None else self.model.detokenize([int(token_id)], special=True).decode(errors="replace")

    def render(self, messages: Sequence[Message]) -> str:
        """As ``Speaker.render``; what the template refuses is a ``ModelError`` in its own words."""
        try:
            texts, _ = render_jinja_template(
                [list(messages)],
                chat_template=self.model.chat_template,
                add_generation_prompt=True,
                **self._special_tokens,
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise ModelError(f"{self.name}: its chat template refuses this conversation: {error}") from error
        return texts[0]

    def tokenize(self, text: str) -> list[int]:
        """As ``Speaker.tokenize``; a template writes its begin token itself."""
        return self.model.tokenize(text, begin=not self.has_template)

    def decode(self, ids: Sequence[int]) -> str:
        """As ``Speaker.decode``."""
        return self.model.detokenize(ids).decode(errors="replace")

    def generate(self, ids: Sequence[int], sampling: Sampling) -> Iterator[int]:
        """As ``Speaker.generate``."""
        return self.model.generate(
            ids,
            max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature or 0.0,
            seed=sampling.seed,
        )

    def close(self) -> None:
        """As ``Speaker.close``."""
        self.model.close()
