"""Show one pair as the model will see it: the prompt, the tokens that are learned, and those after them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ...errors import RowError
from ..formats import PreferencePair, to_pair
from ..sources import FileRows, Rows, numbered_rows
from ..tokens.tokenized import TokenizedPair
from .texts import PairTexts

if TYPE_CHECKING:
    from ..tokens.pair_tokenizer import PairTokenizer


class Segment(NamedTuple):
    """A piece of text, and whether its tokens are targets."""

    text: str
    is_learned: bool


@dataclass(frozen=True)
class Example:
    """A pair with its loss mask."""

    row: int
    prompt: str  # the common beginning of both sides
    chosen: tuple[Segment, ...]
    rejected: tuple[Segment, ...]
    is_tokenized: bool  # whether the texts are decoded from tokens; otherwise they are those of the row

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        sides = {side: [segment._asdict() for segment in getattr(self, side)] for side in ("chosen", "rejected")}
        return {"row": self.row, "prompt": self.prompt, **sides, "is_tokenized": self.is_tokenized}


def first_example(
    rows: Rows | FileRows, left_out: Collection[int], pair_tokenizer: PairTokenizer | None = None
) -> Example | None:
    """Return the first pair among the rows whose numbers are not ``left_out``; None where no pair is left.

    It is rendered and tokenized as in training; without a tokenizer the texts are those of the row.
    """
    for number, row in numbered_rows(rows):
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
        if (example := example_of(number, pair, pair_tokenizer)) is not None:
            return example
    return None


def example_of(number: int, pair: PreferencePair, pair_tokenizer: PairTokenizer) -> Example | None:
    """Return the pair of the row ``number`` as the model sees it; None where it is dropped."""
    (tokens,) = pair_tokenizer.tokenize([pair])
    if not isinstance(tokens, TokenizedPair):
        return None
    decode = pair_tokenizer.tokenizer.decode

    def segments(side: str) -> tuple[Segment, ...]:
        return tuple(Segment(decode(ids), is_learned) for ids, is_learned in tokens.side(side).segments())

    return Example(
        row=number,
        prompt=decode(list(tokens.prompt_ids) or tokens.chosen_ids[: tokens.chosen_prompt_tokens]),
        chosen=segments("chosen"),
        rejected=segments("rejected"),
        is_tokenized=True,
    )
