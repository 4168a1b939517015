"""One pair as the model will see it: what is given, what is learned, and what the template writes after it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ...errors import RowError
from ..formats import to_pair
from ..sources import FileRows, Rows, batches
from ..tokens.tokenized import TokenizedPair
from .texts import PairTexts

if TYPE_CHECKING:
    from ..tokens.pair_tokenizer import PairTokenizer


class Segment(NamedTuple):
    """A stretch of text, and whether its tokens are targets."""

    text: str
    is_learned: bool


@dataclass(frozen=True)
class Example:
    """A pair with its loss mask.

    Args:
        row: Its number.
        prompt: What both sides begin with.
        chosen, rejected: What follows it.
        is_tokenized: Whether the texts are those that the tokenizer and its template make; otherwise those of the row.
    """

    row: int
    prompt: str
    chosen: tuple[Segment, ...]
    rejected: tuple[Segment, ...]
    is_tokenized: bool

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        sides = {side: [segment._asdict() for segment in getattr(self, side)] for side in ("chosen", "rejected")}
        return {"row": self.row, "prompt": self.prompt, **sides, "is_tokenized": self.is_tokenized}


def first_example(
    rows: Rows | FileRows, left_out: Collection[int], pair_tokenizer: PairTokenizer | None = None
) -> Example | None:
    """The first pair that stays.

    Args:
        rows: The rows.
        left_out: Numbers of those that do not stay.
        pair_tokenizer: Renders and tokenizes it as the training will.

    Returns:
        The pair, or None where none stays.
    """
    for start, batch in batches(rows):
        for number, row in enumerate(batch, start):
            if number in left_out:
                continue
            try:
                pair = to_pair(row)
            except RowError:
                continue
            if pair_tokenizer is None:
                texts = PairTexts.of(pair)
                chosen, rejected = ((Segment(text, True),) for text in (texts.chosen, texts.rejected))
                return Example(number, texts.prompt, chosen, rejected, False)
            (tokens,) = pair_tokenizer.tokenize([pair])
            if isinstance(tokens, TokenizedPair):
                return _tokenized(number, tokens, pair_tokenizer)
    return None


def _tokenized(number: int, tokens: TokenizedPair, pair_tokenizer: PairTokenizer) -> Example:
    decode = pair_tokenizer.tokenizer.decode

    def segments(ids: list[int], prompt_tokens: int, end: int) -> tuple[Segment, ...]:
        learned, rest = Segment(decode(ids[prompt_tokens:end]), True), Segment(decode(ids[end:]), False)
        return (learned, rest) if rest.text else (learned,)

    prompt_ids = list(tokens.prompt_ids) or tokens.chosen_ids[: tokens.chosen_prompt_tokens]
    return Example(
        number,
        decode(prompt_ids),
        segments(tokens.chosen_ids, tokens.chosen_prompt_tokens, tokens.chosen_end),
        segments(tokens.rejected_ids, tokens.rejected_prompt_tokens, tokens.rejected_end),
        True,
    )
