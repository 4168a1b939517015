"""Generate answers with a model: in batches for many prompts, or token by token for a chat."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from threading import Event
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.generation.streamers import BaseStreamer

from ..data.tokens.rendering import Renderer
from ..errors import ModelError
from .computing import clear_computing
from .sampling import OwnDraws

# Tokenizers without a limit state a number far above this one.
NO_LIMIT_TOKENS = 10**8


class Reply(NamedTuple):
    """One answer."""

    text: str  # without special tokens and whitespace around it
    tokens: int  # computed ones, without the one that ends the answer
    is_finished: bool  # the model ended it; otherwise it was cut


def answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]], **options: Any
) -> list[str]:
    """Return the texts of :func:`replies`, which takes the same arguments."""
    return [reply.text for reply in replies(model, tokenizer, prompts, **options)]


@torch.no_grad()
def replies(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    top_p: float = 1.0,
    batch_size: int = 32,
    on_batch: Callable[[int], None] | None = None,
) -> list[Reply]:
    """Answer prompts in batches padded on the left, the shortest prompts first.

    Args:
        model: A causal or encoder-decoder model.
        tokenizer: Its tokenizer.
        prompts: Token ids of each prompt, as the chat template renders them with the generation prompt.
        max_new_tokens: Length at which an answer is cut.
        temperature: 0 takes the likeliest token each time.
        seed: Of the sampling; the same prompts in batches of the same size get the same answers.
        seeds: In its place one for each prompt, whose answer then depends on nothing else in the batch but for
            rounding; of the model's own settings none changes the probabilities then, except penalties.
        top_p: With ``seeds``: draw only from the likeliest tokens that have this probability together.
        batch_size: Prompts answered at once.
        on_batch: Called with the number of answers done so far.

    Returns:
        One reply per prompt, in their order.
    """
    was_training = model.training
    model.eval()
    answers = [Reply("", 0, False)] * len(prompts)
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    end_ids = end_tokens(model, tokenizer)
    if temperature > 0:
        set_seed(seed)
    for start in range(0, len(by_length), batch_size):
        chunk = by_length[start : start + batch_size]
        width = max(len(prompts[i]) for i in chunk)
        ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(prompts[i])) + list(prompts[i]) for i in chunk])
        mask = torch.tensor([[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in chunk])
        options = _options(tokenizer, end_ids, max_new_tokens, temperature)
        if seeds is not None and temperature > 0:
            draws = OwnDraws([seeds[i] for i in chunk], temperature, top_p, max_new_tokens)
            options = _options(tokenizer, end_ids, max_new_tokens, 0.0)
            options |= {"num_beams": 1, "logits_processor": LogitsProcessorList([draws])}
        with clear_computing(model.name_or_path, "generate"):
            output = model.generate(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), **options)
        new = output[:, 1:] if model.config.is_encoder_decoder else output[:, width:]
        for i, row in zip(chunk, new.tolist(), strict=True):
            length = next((position for position, token in enumerate(row) if token in end_ids), len(row))
            text = tokenizer.decode(row[:length], skip_special_tokens=True)
            answers[i] = Reply(text.strip(), length, length < len(row))
        if on_batch:
            on_batch(start + len(chunk))
    model.train(was_training)
    return answers


def stream(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[int],
    *,
    end_ids: Sequence[int],
    max_new_tokens: int,
    temperature: float | None,
    seed: int,
) -> Iterator[int]:
    """Yield the tokens of the answer to one prompt, without the one of ``end_ids`` that ends it.

    transformers computes in a thread; closing the iterator ends the computation. The model is in evaluation mode.
    Arguments are those of :func:`replies`; temperature ``None`` follows the model's own generation settings.
    """
    tokens: SimpleQueue[int | None] = SimpleQueue()
    stop = Event()

    def is_stopped(input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.full((len(input_ids),), stop.is_set(), dtype=torch.bool, device=input_ids.device)

    def generate() -> None:
        ids = torch.tensor([list(prompt)], device=model.device)
        set_seed(seed)
        with torch.no_grad(), clear_computing(model.name_or_path, "generate"):
            model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                streamer=_QueueStreamer(tokens),
                stopping_criteria=[is_stopped],
                num_beams=1,  # several beams have no next token before their end
                **_options(tokenizer, end_ids, max_new_tokens, temperature),
            )

    with ThreadPoolExecutor(max_workers=1) as pool:
        done = pool.submit(generate)
        done.add_done_callback(lambda _: tokens.put(None))
        try:
            while (token := tokens.get()) is not None:
                if token not in end_ids:
                    yield token
        finally:
            stop.set()
        done.result()  # raises what was raised in the thread


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that end an answer: the tokenizer's, the chat template's end of turn, the model's settings'."""
    settings = getattr(model, "generation_config", None)
    ends = [*_listed(getattr(settings, "eos_token_id", None)), tokenizer.eos_token_id]
    if tokenizer.chat_template is not None:
        with suppress(ModelError):  # a template that renders no plain question and answer
            end_of_turn = Renderer(tokenizer).end_of_turn
            ends.append(None if end_of_turn is None else tokenizer.convert_tokens_to_ids(end_of_turn))
    return sorted({token for token in ends if token is not None})


def stop_at_end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Let ``generate`` stop at every token that ends an answer, and return these tokens; other settings stay.

    A base model that is trained with a chat template ends its answers with the template's end of turn. Its generation
    settings name only the end of a document, so it would never stop. ``ModelError`` if the settings cannot be saved.
    """
    ends, settings = end_tokens(model, tokenizer), getattr(model, "generation_config", None)
    if settings is None:
        return ends
    if not set(ends) <= set(_listed(settings.eos_token_id)):
        settings.eos_token_id = ends if len(ends) > 1 else ends[0]
    settings._from_model_config = False  # else the end would be taken from config.json
    if settings.pad_token_id is None:
        settings.pad_token_id = tokenizer.pad_token_id
    try:
        settings.validate(strict=True)
    except ValueError:  # a temperature without do_sample: transformers reads such settings, and refuses to write them
        settings.do_sample = True
        try:
            settings.validate(strict=True)
        except ValueError as error:
            reason = " ".join(str(error).split())
            raise ModelError(f"the model's generation_config cannot be saved, so change it: {reason}") from error
    return ends


def _listed(token_ids: int | list[int] | None) -> list[int]:
    return token_ids if isinstance(token_ids, list) else [] if token_ids is None else [token_ids]


def context_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return how many tokens prompt and answer may have together; ``None`` where model and tokenizer state no limit."""
    stated = (getattr(model.config.get_text_config(), "max_position_embeddings", None), tokenizer.model_max_length)
    limits = [limit for limit in stated if limit and limit < NO_LIMIT_TOKENS]
    return min(limits) if limits else None


def _options(
    tokenizer: PreTrainedTokenizerBase, end_ids: Sequence[int], max_new_tokens: int, temperature: float | None
) -> dict[str, Any]:
    """Return keyword arguments of ``generate``; without a temperature the model's own settings decide."""
    sampling: dict[str, Any] = {} if temperature is None else {"do_sample": temperature > 0}
    if temperature:
        sampling["temperature"] = temperature
    return {
        "max_new_tokens": max_new_tokens,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": list(end_ids),
        "use_cache": True,
        "return_dict_in_generate": False,  # whatever the model's own settings say
        "num_return_sequences": 1,
        **sampling,
    }


class _QueueStreamer(BaseStreamer):
    """Put the tokens of an answer into a queue. The first call of ``put`` has the prompt, which is left out."""

    def __init__(self, tokens: SimpleQueue):
        self.tokens, self.is_answer = tokens, False

    def put(self, value: Tensor) -> None:
        if self.is_answer:
            for token in value.flatten().tolist():
                self.tokens.put(token)
        self.is_answer = True

    def end(self) -> None:
        """Do nothing: the thread ends the queue, also where the computation fails."""
