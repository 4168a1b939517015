"""Answer with a GGUF file in llama.cpp. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ...data.formats import Message
from ...export.gguf.llama_cpp import GgufModel, load_cyllama
from ...export.gguf.trial import survivable
from ...model.loading.gguf_header import SPECIAL_TOKENS, check_gguf
from .interface import Sampling, clear_refusal


class GgufBackend:
    """Run a GGUF file in llama.cpp; see ``ChatBackend``. Its chat template runs in the sandbox of all templates."""

    own_temperature = 0.0

    def __init__(self, name: str, path: str):
        self.name = name
        load_cyllama()  # raises at once where it is missing
        check_gguf(Path(path))
        with survivable(Path(path)):  # meanwhile what takes as long is imported
            from transformers.utils.chat_template_utils import render_jinja_template

            from ...data.templates.environment import guard_chat_templates

            guard_chat_templates()
        self._render_template = render_jinja_template
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
        with clear_refusal(self.name):
            texts, _ = self._render_template(
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
