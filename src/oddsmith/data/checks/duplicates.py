"""Rows that are alike: the same pair again, the same pair the other way round, the same or nearly the same prompt.

Rows come in their order; each is compared with those before it. Of a group of prompts that are alike only the first is
searched among, so that a thousand prompts from one mould take no more time than others.
"""

from __future__ import annotations

from typing import NamedTuple

from rensa import RMinHash, RMinHashLSH

from . import catalogue
from .finding import Check
from .prints import PERMUTATIONS, Fingerprint

SIMILAR = 0.8  # Jaccard similarity of word triples. Source: Lee et al., arXiv 2107.06499, who call 0.8 near-duplicates
# 16 bands of 8: prompts of similarity s meet with 1 - (1 - s^8)^16: 95% at 0.8, 99.99% at 0.9, 6% at 0.5.
BANDS = 16


class PromptIndex:
    """Prompts, found again by their digest or by a similar sketch."""

    def __init__(self) -> None:
        self._digests: set[int] = set()
        self._sketches: list[RMinHash] = []
        self._buckets = RMinHashLSH(threshold=SIMILAR, num_perm=PERMUTATIONS, num_bands=BANDS)

    def __contains__(self, print_: Fingerprint) -> bool:
        return self.has_same(print_) or self.has_similar(print_)

    def has_same(self, print_: Fingerprint) -> bool:
        """Whether the prompt was added before."""
        return print_.prompt in self._digests

    def has_similar(self, print_: Fingerprint) -> bool:
        """Whether a prompt that is at least ``SIMILAR`` was added before."""
        return any(
            self._sketches[number].jaccard(print_.minhash) >= SIMILAR for number in self._buckets.query(print_.minhash)
        )

    def add(self, print_: Fingerprint, *, is_searched: bool = True) -> None:
        """Add a prompt; ``is_searched``: also to be found by those similar to it."""
        self._digests.add(print_.prompt)
        if is_searched:
            self._buckets.insert(len(self._sketches), print_.minhash)
            self._sketches.append(print_.minhash)


class _Seen(NamedTuple):
    row: int
    is_swapped: bool


class Duplicates:
    """Compares every row with those before it.

    Args:
        evaluation: Prompts of the evaluation set; None where there is none.
    """

    def __init__(self, evaluation: PromptIndex | None = None):
        self.evaluation = evaluation
        self._prompts = PromptIndex()
        self._pairs: dict[int, _Seen] = {}

    def compare(self, row: int, print_: Fingerprint) -> list[tuple[Check, int]]:
        """What is to be said of a row now that it is compared with those before it.

        Args:
            row: Its number.
            print_: Its fingerprint.

        Returns:
            Checks with the row at fault: this one, or an earlier one that conflicts with it.
        """
        hits = [(catalogue.EVALUATION_OVERLAP, row)] if self.evaluation and print_ in self.evaluation else []
        seen = self._pairs.setdefault(print_.answers, _Seen(row, print_.is_swapped))
        if seen.row != row:
            if seen.is_swapped == print_.is_swapped:
                return [*hits, (catalogue.DUPLICATE_PAIRS, row)]
            return [*hits, (catalogue.CONFLICTS, seen.row), (catalogue.CONFLICTS, row)]
        if self._prompts.has_same(print_):
            return [*hits, (catalogue.DUPLICATE_PROMPTS, row)]
        is_similar = self._prompts.has_similar(print_)
        self._prompts.add(print_, is_searched=not is_similar)
        return [*hits, (catalogue.SIMILAR_PROMPTS, row)] if is_similar else hits
