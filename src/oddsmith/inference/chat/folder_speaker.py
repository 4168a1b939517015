"""A model folder, an adapter or a model on the hub, run by transformers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from threading import Event
from typing import Any

import torch
from jinja2.exceptions import TemplateError
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria, set_seed
from transformers.generation.streamers import BaseStreamer

from ...data.formats import Message
from ...errors import ModelError
from ...model.generation import context_length, end_tokens
from .speaker import Sampling


class FolderSpeaker:
    """A transformers model that answers; see ``Speaker``.

    Args:
        name: What to call it.
        model: A causal or encoder-decoder model, with or without an adapter on it.
        tokenizer: Its tokenizer.
    """

    def __init__(self, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        self.name, self.model, self.tokenizer = name, model, tokenizer
        self.has_template = tokenizer.chat_template is not None
        self.context_tokens = context_length(model, tokenizer)
        settings = model.generation_config
        self.own_temperature = float(settings.temperature or 1.0) if settings.do_sample else 0.0
        self._end_ids = end_tokens(model, tokenizer)

    def render(self, messages: Sequence[Message]) -> str:
        """As ``Speaker.render``; what the template refuses is a ``ModelError`` in its own words."""
        try:
            return self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        except (TemplateError, TypeError, ValueError) as error:
            raise ModelError(f"{self.name}: its chat template refuses this conversation: {error}") from error

    def tokenize(self, text: str) -> list[int]:
        """As ``Speaker.tokenize``; a template writes its begin token itself."""
        return self.tokenizer(text, add_special_tokens=not self.has_template).input_ids

    def decode(self, ids: Sequence[int]) -> str:
        """As ``Speaker.decode``."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def generate(self, ids: Sequence[int], sampling: Sampling) -> Iterator[int]:
        """As ``Speaker.generate``; transformers computes in a thread of its own."""
        tokens: SimpleQueue[int | None] = SimpleQueue()
        stop = _Stop()
        with ThreadPoolExecutor(max_workers=1) as pool:
            done = pool.submit(self._fill, tokens, stop, torch.tensor([list(ids)]), sampling)
            done.add_done_callback(lambda _: tokens.put(None))
            try:
                while (token := tokens.get()) is not None:
                    if token not in self._end_ids:
                        yield token
            finally:
                stop.wanted.set()
            done.result()  # raises what was raised there

    def _fill(self, tokens: SimpleQueue, stop: _Stop, ids: Tensor, sampling: Sampling) -> None:
        options: dict[str, Any] = {}
        if sampling.temperature is not None:
            options["do_sample"] = sampling.temperature > 0
            if sampling.temperature > 0:
                options["temperature"] = sampling.temperature
        set_seed(sampling.seed)
        with torch.no_grad():
            self.model.generate(
                input_ids=ids.to(self.model.device),
                attention_mask=torch.ones_like(ids).to(self.model.device),
                max_new_tokens=sampling.max_new_tokens,
                pad_token_id=self.tokenizer.pad_token_id,
                eos_token_id=self._end_ids,
                streamer=_TokensTo(tokens),
                stopping_criteria=[stop],
                **options,
            )

    def close(self) -> None:
        """As ``Speaker.close``: the model goes when nobody refers to it any more."""


class _TokensTo(BaseStreamer):
    """Puts the tokens of an answer into a queue; the first call brings the prompt."""

    def __init__(self, tokens: SimpleQueue):
        self.tokens, self.is_answer = tokens, False

    def put(self, value: Tensor) -> None:
        if self.is_answer:
            for token in value.flatten().tolist():
                self.tokens.put(token)
        self.is_answer = True

    def end(self) -> None:
        """The queue ends with the computation, also where that fails."""


class _Stop(StoppingCriteria):
    """Ends an answer that nobody wants to read any further."""

    def __init__(self) -> None:
        self.wanted = Event()

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.full((len(input_ids),), self.wanted.is_set(), dtype=torch.bool, device=input_ids.device)
