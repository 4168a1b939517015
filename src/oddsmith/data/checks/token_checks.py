"""Checks that need a tokenizer: what its chat template, its control tokens and ``max_length`` do to a pair.

The tokens are those of the training, made by the same code (``tokens.pair_tokenizer``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...errors import RowError
from ..formats import PreferencePair
from ..limits import TOO_LONG, Misfit, ModelLimits, misfit_of
from ..tokens.pair_tokenizer import PairTokenizer
from ..tokens.rendering import RenderedPair
from ..tokens.tokenized import IN_TEMPLATE, OF_TEMPLATE, Dropped, DropReason, Form, TokenizedPair
from . import catalogue
from .catalogue import Check, Hit
from .texts import PairTexts

# The other reasons (empty answers) are found without a tokenizer.
REASONS: dict[str, Check] = {
    DropReason.NO_RESPONSE: catalogue.LOST_IN_TEMPLATE,
    DropReason.IDENTICAL: catalogue.LOST_IN_TEMPLATE,
    **dict.fromkeys(OF_TEMPLATE, catalogue.LOST_IN_TEMPLATE),
    DropReason.IDENTICAL_AFTER_CUT: catalogue.IDENTICAL_AFTER_CUT,
    DropReason.PROMPT_TOO_LONG: catalogue.PROMPT_TOO_LONG,
}


class TokenChecks:
    """Tokenize pairs as the training will, and find the faults that only tokens show."""

    def __init__(self, pair_tokenizer: PairTokenizer, limits: ModelLimits | None = None):
        self.pair_tokenizer, self.limits = pair_tokenizer, limits
        self.tokenizer = pair_tokenizer.tokenizer
        added = self.tokenizer.added_tokens_decoder.values()
        # Only special tokens: others such as <think> are added too, but belong in answers.
        self._control = [token.content for token in added if token.special and token.content.strip()]

    def check(
        self, pairs: Sequence[PreferencePair], texts: Sequence[PairTexts]
    ) -> Iterator[tuple[list[Hit], TokenizedPair | Dropped]]:
        """Yield the faults of each pair, and its tokens or why it is dropped; ``texts`` are those of the pairs.

        A tokenizer without a chat template or an EOS token that is needed is a ``ModelError``.
        """
        found: list[list[Hit]] = [[] for _ in pairs]
        rendered: list[RenderedPair | Dropped] = []
        for hits, pair in zip(found, pairs, strict=True):
            try:
                rendered.append(self.pair_tokenizer.render(pair))
            except RowError as error:
                hits.append((catalogue.TEMPLATE_REFUSED, error.reason))
                rendered.append(Dropped(error.reason))
        outcomes = self.pair_tokenizer.encode(rendered)
        for hits, pair, pair_texts, before, outcome in zip(found, pairs, texts, rendered, outcomes, strict=True):
            for text in (pair_texts.prompt, pair_texts.chosen, pair_texts.rejected):
                hits += [(catalogue.CONTROL_TOKENS, token) for token in self._control if token in text][:1]
            if isinstance(outcome, TokenizedPair):
                yield [*hits, *self._token_hits(pair, outcome)], outcome
                continue
            if not isinstance(before, Dropped) or outcome.reason in OF_TEMPLATE:
                hits.append((REASONS[outcome.reason], outcome.reason))
            yield hits, outcome

    def _token_hits(self, pair: PreferencePair, tokens: TokenizedPair) -> Iterator[Hit]:
        if self.limits is not None and (misfit := misfit_of(tokens.to_row(0), self.limits)) is not None:
            yield self._misfit_hit(misfit, self.limits)
        if tokens.form is Form.TEXT:
            yield catalogue.PLAIN_TEXT, ""
        if tokens.form is Form.TRANSCRIPT:
            yield catalogue.TRANSCRIPTS, ""
        yield from ((catalogue.LEFT_OUT, part) for part in tokens.left_out)
        if tokens.prompt_cut:
            yield catalogue.PROMPT_CUT, ""
        for side in ("chosen", "rejected"):
            if getattr(tokens, f"{side}_cut"):
                yield catalogue.ANSWER_CUT, side
            ids = getattr(tokens, f"{side}_ids")
            yield from self._end_hits(tokens, getattr(pair, side), side)
            bos = self.tokenizer.bos_token_id
            if bos is not None and list(tokens.prompt_ids or ids)[:2] == [bos, bos]:
                yield catalogue.DOUBLE_BOS, side

    def _misfit_hit(self, misfit: Misfit, limits: ModelLimits) -> Hit:
        if misfit.reason == TOO_LONG:
            return catalogue.TOO_LONG, f"more than {limits.positions:,} tokens"
        token = self.tokenizer.convert_ids_to_tokens(misfit.number)
        return catalogue.NO_EMBEDDING, f"token {misfit.number} ({token!r}) of {limits.embeddings:,} embeddings"

    def _end_hits(self, tokens: TokenizedPair, answer: object, side: str) -> Iterator[Hit]:
        """Yield a hit for more end-of-turn tokens than turns of an answer. Where it has none, training adds EOS."""
        is_in_template = tokens.form in IN_TEMPLATE
        token = self.pair_tokenizer.renderer.end_of_turn if is_in_template else None
        end = self.tokenizer.eos_token_id if token is None else self.tokenizer.convert_tokens_to_ids(token)
        if is_in_template and token is None:
            yield catalogue.NO_TURN_END, ""
        turns = [message for message in answer if message["role"] == "assistant"] if isinstance(answer, list) else [1]
        if tokens.side(side).targets().count(end) > len(turns):
            yield catalogue.TURN_ENDS, side
