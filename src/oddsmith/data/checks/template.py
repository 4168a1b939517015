"""What becomes of a pair under a tokenizer: its chat template, the ends of its turns, and ``max_length``.

The tokens are those of the training, made by the same code (``data.tokenize``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...errors import RowError
from ..formats import PreferencePair
from ..tokens.pair_tokenizer import PairTokenizer
from ..tokens.rendering import RenderedPair
from ..tokens.tokenized import Dropped, DropReason, TokenizedPair
from . import catalogue
from .answers import Hit
from .finding import Check
from .texts import PairTexts

# What no side's text can do anything about is counted by the checks of the rows.
REASONS: dict[str, Check] = {
    DropReason.NO_RESPONSE: catalogue.LOST_IN_TEMPLATE,
    DropReason.IDENTICAL: catalogue.LOST_IN_TEMPLATE,
    DropReason.IDENTICAL_AFTER_CUT: catalogue.IDENTICAL_AFTER_CUT,
    DropReason.PROMPT_TOO_LONG: catalogue.PROMPT_TOO_LONG,
}


class TemplateCheck:
    """Tokenizes pairs and finds the faults that only tokens show.

    Args:
        pair_tokenizer: Makes the tokens as the training will.
    """

    def __init__(self, pair_tokenizer: PairTokenizer):
        self.pair_tokenizer = pair_tokenizer
        self.tokenizer = pair_tokenizer.tokenizer
        added = self.tokenizer.added_tokens_decoder.values()
        # Only those that steer: <think> and the like are added, too, but stand in answers by right.
        self._control = [token.content for token in added if token.special and token.content.strip()]

    def hits(
        self, pairs: Sequence[PreferencePair], texts: Sequence[PairTexts]
    ) -> list[tuple[list[Hit], TokenizedPair | None]]:
        """The faults of some pairs, and their tokens.

        Args:
            pairs: The pairs.
            texts: Their texts.

        Returns:
            For each pair its faults, and its tokens unless it is dropped.

        Raises:
            ModelError: The tokenizer lacks what is needed: a chat template, an EOS token.
        """
        found: list[list[Hit]] = [[] for _ in pairs]
        rendered: list[RenderedPair | Dropped] = []
        for hits, pair in zip(found, pairs, strict=True):
            try:
                rendered.append(self.pair_tokenizer.render(pair))
            except RowError as error:
                hits.append((catalogue.TEMPLATE_REFUSED, error.reason))
                rendered.append(Dropped(error.reason))
        outcomes = []
        for hits, pair, said, before, outcome in zip(
            found, pairs, texts, rendered, self.pair_tokenizer.encode(rendered), strict=True
        ):
            hits.extend((catalogue.CONTROL_TOKENS, token) for token in self._control_tokens(said))
            if isinstance(outcome, Dropped):
                if not isinstance(before, Dropped):
                    hits.append((REASONS[outcome.reason], ""))
            else:
                hits.extend(self._token_hits(pair, outcome))
            outcomes.append((hits, outcome if isinstance(outcome, TokenizedPair) else None))
        return outcomes

    def _control_tokens(self, texts: PairTexts) -> Iterator[str]:
        """The first control token in each text."""
        for text in (texts.prompt, texts.chosen, texts.rejected):
            yield from [token for token in self._control if token in text][:1]

    def _token_hits(self, pair: PreferencePair, tokens: TokenizedPair) -> Iterator[Hit]:
        if tokens.prompt_cut:
            yield catalogue.PROMPT_CUT, ""
        for side in ("chosen", "rejected"):
            if getattr(tokens, f"{side}_cut"):
                yield catalogue.ANSWER_CUT, side
            ids, end = getattr(tokens, f"{side}_ids"), getattr(tokens, f"{side}_end")
            targets = ids[getattr(tokens, f"{side}_prompt_tokens") : end]
            yield from self._end_hits(pair, targets, getattr(pair, side), side)
            bos = self.tokenizer.bos_token_id
            if bos is not None and list(tokens.prompt_ids or ids)[:2] == [bos, bos]:
                yield catalogue.DOUBLE_BOS, side

    def _end_hits(self, pair: PreferencePair, targets: Sequence[int], answer: object, side: str) -> Iterator[Hit]:
        """Whether an answer holds more ends of turns than it has messages. It lacks none: training adds EOS then."""
        token = self.pair_tokenizer.renderer.end_of_turn if pair.is_conversational else None
        end = self.tokenizer.eos_token_id if token is None else self.tokenizer.convert_tokens_to_ids(token)
        if pair.is_conversational and token is None:
            yield catalogue.NO_TURN_END, ""
        if list(targets).count(end) > (len(answer) if isinstance(answer, list) else 1):
            yield catalogue.TURN_ENDS, side
