"""Two models side by side: what each answers to the same prompts, and which answer of each pair each finds likelier.

    log_odds = log p/(1-p) of the chosen answer - log p/(1-p) of the rejected one

where p is exp of the mean log-probability of an answer's tokens. Above 0 the model prefers the chosen answer.
Source: the odds ratio of ORPO, arXiv 2403.07691, Eq. 4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import fmean
from typing import Any

import torch
from jinja2.exceptions import TemplateError

from ...batching.collate import PaddedTensors, PairCollator
from ...data.formats import Message
from ...data.row_tokenizer import token_row
from ...data.tokens.pair_tokenizer import PairTokenizer
from ...data.tokens.tokenized import TokenizedPair
from ...errors import DataError
from ...loss import log_odds
from ...model.generation import Reply, context_length, replies
from ...model.logprobs.padded import pair_logps
from ..chat.speaker import Sampling
from .prompts import Prompt
from .sides import LoadedSide, both_sides

DEFAULT_MAX_NEW_TOKENS = 256
NGRAM_WORDS = 4


@dataclass(frozen=True)
class Said:
    """One answer of one model.

    Args:
        text: The answer.
        tokens: Its length.
        words: Its length.
        repetition: Share of its 4-word sequences that it had said before, 0 to 1.
        is_finished: Whether the model ended it; otherwise it was cut.
    """

    text: str
    tokens: int
    words: int
    repetition: float
    is_finished: bool


@dataclass(frozen=True)
class Answered:
    """What one model made of one prompt.

    Args:
        answers: One a turn.
        log_odds: Of the prompt's pair; ``None`` without one.
    """

    answers: list[Said]
    log_odds: float | None = None


@dataclass(frozen=True)
class Row:
    """A prompt and what both models made of it."""

    prompt: Prompt
    base: Answered
    tuned: Answered


@dataclass(frozen=True)
class Summary:
    """One model over all prompts: means over answers, and over pairs.

    Args:
        tokens: Mean length of an answer.
        words: Mean length of an answer.
        repetition: Mean repetition.
        finished: Share of answers that ended by themselves.
        log_odds: Mean over the pairs; ``None`` without pairs.
        prefers_chosen: Share of pairs whose log-odds are above 0.
    """

    tokens: float
    words: float
    repetition: float
    finished: float
    log_odds: float | None
    prefers_chosen: float | None


@dataclass(frozen=True)
class Comparison:
    """The outcome.

    Args:
        base: Name of the one model.
        tuned: Name of the other.
        sampling: How answers were drawn.
        rows: The prompts with both models' answers.
    """

    base: str
    tuned: str
    sampling: Sampling
    rows: list[Row]

    @property
    def summaries(self) -> dict[str, Summary]:
        """Both models over all prompts, by ``"base"`` and ``"tuned"``."""
        return {side: _summary([getattr(row, side) for row in self.rows]) for side in ("base", "tuned")}

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "base": self.base,
            "tuned": self.tuned,
            "sampling": asdict(self.sampling),
            "summary": {side: asdict(summary) for side, summary in self.summaries.items()},
            "rows": [
                {
                    "row": row.prompt.number,
                    "prompt": row.prompt.opening,
                    "turns": row.prompt.questions,
                    "base": asdict(row.base),
                    "tuned": asdict(row.tuned),
                }
                for row in self.rows
            ],
        }


def compare(
    base: str,
    tuned: str,
    prompts: Sequence[Prompt],
    *,
    sampling: Sampling | None = None,
    batch_size: int = 16,
    on_stage: Callable[[str, Any], None] = lambda stage, detail: None,
) -> Comparison:
    """Ask two models the same.

    Args:
        base: Name of the model to compare with, as for ``load_model``; a GGUF file is unpacked.
        tuned: Name of the model to look at. An adapter on ``base`` is loaded once and switched off for the base.
        prompts: What to ask.
        sampling: How answers are drawn; greedy by default.
        batch_size: Prompts answered, and pairs measured, at once.
        on_stage: Called with ``("load", name)``, ``("answer", (side, done, of))``, ``("measure", (side, done, of))``.

    Returns:
        The answers, and the log-odds of the pairs.

    Raises:
        ModelError: A model is missing or cannot be used.
        DataError: A prompt that a model's template refuses, or that is longer than its context.
    """
    sampling = sampling or Sampling(0.0, DEFAULT_MAX_NEW_TOKENS)
    found: dict[str, list[Answered]] = {}
    for loaded in both_sides(base, tuned, on_stage):
        answers = _answers(loaded, prompts, sampling, batch_size, on_stage)
        odds = _log_odds(loaded, prompts, batch_size, on_stage)
        found[loaded.side] = [Answered(*both) for both in zip(answers, odds, strict=True)]
    rows = [Row(*row) for row in zip(prompts, found["base"], found["tuned"], strict=True)]
    return Comparison(base, tuned, sampling, rows)


def repetition(text: str) -> float:
    """How much of a text repeats what it said before.

    Args:
        text: An answer.

    Returns:
        Share of its sequences of 4 words that occurred earlier in it; 0 for a shorter text. Source: seq-rep-4 of
        Welleck et al., arXiv 1908.04319, over words.
    """
    words = text.lower().split()
    ngrams = [tuple(words[start : start + NGRAM_WORDS]) for start in range(len(words) - NGRAM_WORDS + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def _answers(
    loaded: LoadedSide, prompts: Sequence[Prompt], sampling: Sampling, batch_size: int, on_stage: Callable
) -> list[list[Said]]:
    """Every turn is answered for all prompts that have it before the next one begins."""
    said: list[list[Said]] = [[] for _ in prompts]
    total = sum(len(prompt.questions) for prompt in prompts)
    done = 0
    for turn in range(max(len(prompt.questions) for prompt in prompts)):
        asked = [number for number, prompt in enumerate(prompts) if turn < len(prompt.questions)]
        found = replies(
            loaded.model,
            loaded.tokenizer,
            [_tokens(loaded, prompts[number], said[number]) for number in asked],
            max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature or 0.0,
            seed=sampling.seed + turn,
            batch_size=batch_size,
            on_batch=partial(_count, on_stage, loaded.side, done, total),
        )
        for number, reply in zip(asked, found, strict=True):
            said[number].append(_said(reply))
        done += len(asked)
    return said


def _count(on_stage: Callable, side: str, before: int, total: int, count: int) -> None:
    on_stage("answer", (side, before + count, total))


def _tokens(loaded: LoadedSide, prompt: Prompt, said: Sequence[Said]) -> list[int]:
    tokenizer = loaded.tokenizer
    if isinstance(prompt.opening, str):
        ids = tokenizer(prompt.opening).input_ids
    elif tokenizer.chat_template is None:
        texts = [message["content"] for message in _messages(prompt, said)]
        ids = tokenizer("\n".join(texts)).input_ids
    else:
        try:
            ids = tokenizer.apply_chat_template(_messages(prompt, said), add_generation_prompt=True, return_dict=False)
        except (TemplateError, TypeError, ValueError) as error:
            where = f"prompt {prompt.number}, {loaded.side} model"
            raise DataError(f"{where}: the chat template refuses it: {error}") from error
    limit = context_length(loaded.model, tokenizer)
    if limit is not None and len(ids) >= limit:
        raise DataError(
            f"prompt {prompt.number}: has {len(ids):,} tokens, and the {loaded.side} model reads at most {limit:,};"
            " shorten or remove it"
        )
    return ids


def _messages(prompt: Prompt, said: Sequence[Said]) -> list[Message]:
    """The conversation up to the turn that follows what was said."""
    messages = list(prompt.opening)
    for answer, question in zip(said, prompt.follow_ups, strict=False):
        messages += [{"role": "assistant", "content": answer.text}, {"role": "user", "content": question}]
    return messages  # type: ignore[return-value]


def _said(reply: Reply) -> Said:
    return Said(reply.text, reply.tokens, len(reply.text.split()), repetition(reply.text), reply.is_finished)


@torch.no_grad()
def _log_odds(loaded: LoadedSide, prompts: Sequence[Prompt], batch_size: int, on_stage: Callable) -> list[float | None]:
    """Of each prompt's pair; ``None`` where there is none, or where nothing is left to compare."""
    model, tokenizer = loaded.model, loaded.tokenizer
    is_encoder_decoder = bool(model.config.is_encoder_decoder)
    limit = context_length(model, tokenizer)
    pair_tokenizer = PairTokenizer(tokenizer, max_length=limit, is_encoder_decoder=is_encoder_decoder)
    numbers = [number for number, prompt in enumerate(prompts) if prompt.pair is not None]
    tokenized = pair_tokenizer.tokenize([pair for prompt in prompts if (pair := prompt.pair) is not None])
    kept = [(n, pair) for n, pair in zip(numbers, tokenized, strict=True) if isinstance(pair, TokenizedPair)]
    tensors = PaddedTensors(PairCollator(tokenizer.pad_token_id), is_encoder_decoder)
    found: list[float | None] = [None] * len(prompts)
    for start in range(0, len(kept), batch_size):
        chunk = kept[start : start + batch_size]
        batch = tensors([token_row(number, pair) for number, pair in chunk])
        logps = pair_logps(
            model,
            {name: tensor.to(model.device) for name, tensor in batch.items()},
            pad_token_id=tokenizer.pad_token_id,
            is_encoder_decoder=is_encoder_decoder,
        )
        odds_B = log_odds(logps.logp_chosen_B) - log_odds(logps.logp_rejected_B)
        for (number, _), value in zip(chunk, odds_B.tolist(), strict=True):
            found[number] = value
        on_stage("measure", (loaded.side, min(start + batch_size, len(kept)), len(kept)))
    return found


def _summary(answered: Sequence[Answered]) -> Summary:
    answers = [answer for one in answered for answer in one.answers]
    odds = [one.log_odds for one in answered if one.log_odds is not None]
    return Summary(
        tokens=fmean(answer.tokens for answer in answers),
        words=fmean(answer.words for answer in answers),
        repetition=fmean(answer.repetition for answer in answers),
        finished=fmean(answer.is_finished for answer in answers),
        log_odds=fmean(odds) if odds else None,
        prefers_chosen=fmean(value > 0 for value in odds) if odds else None,
    )
