"""Answer with a model in transformers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...data.formats import Message
from ...data.tokens.content_parts import as_template_reads
from ...model.generation import context_length, end_tokens, stream
from .interface import Sampling, clear_refusal


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
        with clear_refusal(self.name):
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
