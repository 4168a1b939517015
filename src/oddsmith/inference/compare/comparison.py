"""Compare two models: what each answers to the same prompts, and the log-odds of each pair under both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from jinja2.exceptions import TemplateError

from ...data.prompts import Prompt
from ...data.tokens.content_parts import as_template_reads
from ...data.tokens.pair_tokenizer import PairTokenizer
from ...data.tokens.tokenized import TokenizedPair
from ...errors import DataError
from ...model.generation import context_length, replies
from ...model.scoring import score_pairs
from ..chat.backends import Sampling
from ..loading import LoadedSide, load_both

DEFAULT_MAX_NEW_TOKENS = 256
NGRAM_WORDS = 4

OnStage = Callable[[str, Any], None]


@dataclass(frozen=True)
class ModelAnswer:
    """One answer of one model, with its length in tokens and words."""

    text: str
    tokens: int
    words: int
    repetition: float  # share of its 4-word sequences that occurred earlier in it, 0 to 1
    is_finished: bool  # the model ended it; otherwise it was cut


@dataclass(frozen=True)
class PromptResult:
    """The answers of one model to one prompt, one per turn, and the log-odds of the prompt's pair, if it has one."""

    answers: list[ModelAnswer]
    log_odds: float | None = None


@dataclass(frozen=True)
class Row:
    """A prompt and the results of both models."""

    prompt: Prompt
    base: PromptResult
    tuned: PromptResult


@dataclass(frozen=True)
class Summary:
    """One model over all prompts: means over answers, and over pairs (``None`` without pairs)."""

    tokens: float
    words: float
    repetition: float
    finished: float  # share of answers that the model ended
    log_odds: float | None
    prefers_chosen: float | None  # share of pairs with log-odds above 0


@dataclass(frozen=True)
class Comparison:
    """The names of two models, how their answers were drawn, and the prompts with the results of both."""

    base: str
    tuned: str
    sampling: Sampling
    rows: list[Row]

    @property
    def summaries(self) -> dict[str, Summary]:
        """Both models over all prompts, by ``"base"`` and ``"tuned"``."""
        return {side: _summary([getattr(row, side) for row in self.rows]) for side in ("base", "tuned")}

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON values."""
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
    on_stage: OnStage = lambda stage, detail: None,
) -> Comparison:
    """Ask two models the same.

    Args:
        base: Name of the model to compare with, as for ``load_model``; a GGUF file is unpacked.
        tuned: Name of the model to look at. An adapter on ``base`` is loaded once and switched off for the base.
        prompts: What to ask.
        sampling: How answers are drawn; greedy by default.
        batch_size: Prompts answered, and pairs scored, at once.
        on_stage: Called with ``("load", name)``, ``("answer", (side, done, of))``, ``("measure", (side, done, of))``.

    Returns:
        The answers, and the log-odds of the pairs.

    Raises:
        ModelError: A model is missing or cannot be used.
        DataError: A model's template refuses a prompt, or a prompt is longer than the model's context.
    """
    sampling = sampling or Sampling(0.0, DEFAULT_MAX_NEW_TOKENS)
    results: dict[str, list[PromptResult]] = {}
    for loaded in load_both(base, tuned, on_stage):
        answers = _answers(loaded, prompts, sampling, batch_size, on_stage)
        odds = _log_odds(loaded, prompts, batch_size, on_stage)
        results[loaded.side] = [PromptResult(*both) for both in zip(answers, odds, strict=True)]
        del loaded  # else the base would stay in memory while the tuned model is loaded
    rows = [Row(*row) for row in zip(prompts, results["base"], results["tuned"], strict=True)]
    return Comparison(base, tuned, sampling, rows)


def repetition(text: str) -> float:
    """Return the share of a text's 4-word sequences that occurred earlier in it; 0 for a shorter text.

    Source: seq-rep-4 of Welleck et al., arXiv 1908.04319, over words.
    """
    words = text.lower().split()
    ngrams = [tuple(words[start : start + NGRAM_WORDS]) for start in range(len(words) - NGRAM_WORDS + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def _answers(
    loaded: LoadedSide, prompts: Sequence[Prompt], sampling: Sampling, batch_size: int, on_stage: OnStage
) -> list[list[ModelAnswer]]:
    """Answer the first turn of all prompts, then the second of those that have one, and so on."""
    answers: list[list[ModelAnswer]] = [[] for _ in prompts]
    total = sum(len(prompt.questions) for prompt in prompts)
    done = 0
    for turn in range(max(len(prompt.questions) for prompt in prompts)):
        asked = [number for number, prompt in enumerate(prompts) if turn < len(prompt.questions)]

        def report(count: int, before: int = done) -> None:
            on_stage("answer", (loaded.side, before + count, total))

        replied = replies(
            loaded.model,
            loaded.tokenizer,
            [_tokens(loaded, prompts[number], answers[number]) for number in asked],
            max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature or 0.0,
            seed=sampling.seed + turn,
            batch_size=batch_size,
            on_batch=report,
        )
        for number, (text, tokens, is_finished) in zip(asked, replied, strict=True):
            answers[number].append(ModelAnswer(text, tokens, len(text.split()), repetition(text), is_finished))
        done += len(asked)
    return answers


def _tokens(loaded: LoadedSide, prompt: Prompt, answers: Sequence[ModelAnswer]) -> list[int]:
    """Tokenize the conversation up to the turn that follows the answers."""
    tokenizer = loaded.tokenizer
    if isinstance(prompt.opening, str):
        ids = tokenizer(prompt.opening).input_ids
    else:
        messages = list(prompt.opening)
        for answer, question in zip(answers, prompt.follow_ups, strict=False):
            messages += [{"role": "assistant", "content": answer.text}, {"role": "user", "content": question}]
        if tokenizer.chat_template is None:
            transcript = prompt.pair.transcript if prompt.pair else None
            text = transcript[0] if transcript else "\n".join(message["content"] for message in messages)
            ids = tokenizer(text).input_ids
        else:
            try:
                messages = as_template_reads(tokenizer, messages)
                ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
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


def _log_odds(loaded: LoadedSide, prompts: Sequence[Prompt], batch_size: int, on_stage: OnStage) -> list[float | None]:
    """Return the log-odds of each prompt's pair; ``None`` where there is no pair, or training would drop it."""
    model, tokenizer = loaded.model, loaded.tokenizer
    pair_tokenizer = PairTokenizer(
        tokenizer,
        max_length=context_length(model, tokenizer),
        is_encoder_decoder=bool(model.config.is_encoder_decoder),
    )
    numbers = [number for number, prompt in enumerate(prompts) if prompt.pair is not None]
    tokenized = pair_tokenizer.tokenize([prompt.pair for prompt in prompts if prompt.pair is not None])
    pairs = [(n, pair) for n, pair in zip(numbers, tokenized, strict=True) if isinstance(pair, TokenizedPair)]
    odds: dict[int, float] = {}
    for batch in score_pairs(model, pairs, batch_size=batch_size):
        odds |= {score.row: score.log_odds for score in batch}
        on_stage("measure", (loaded.side, len(odds), len(pairs)))
    return [odds.get(number) for number in range(len(prompts))]


def _summary(results: Sequence[PromptResult]) -> Summary:
    answers = [answer for result in results for answer in result.answers]
    odds = [result.log_odds for result in results if result.log_odds is not None]
    return Summary(
        tokens=fmean(answer.tokens for answer in answers),
        words=fmean(answer.words for answer in answers),
        repetition=fmean(answer.repetition for answer in answers),
        finished=fmean(answer.is_finished for answer in answers),
        log_odds=fmean(odds) if odds else None,
        prefers_chosen=fmean(value > 0 for value in odds) if odds else None,
    )
