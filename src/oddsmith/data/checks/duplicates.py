"""Find rows that are alike: repeated or conflicting pairs, the same or nearly the same prompt.

The processes that read rows make a fingerprint of each pair (about 700 bytes, however long the texts are), and the
main process compares these in the order of the rows. Texts are compared without case and extra spaces. Of a group of
similar prompts only the first is searched, so that a thousand prompts from one template take no more time than others.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, NamedTuple

from rensa import RMinHash, RMinHashLSH

from . import catalogue
from .catalogue import Check
from .texts import PairTexts, plain, words_or_characters

SHINGLE_WORDS = 3
# Jaccard similarity of word triples. Source: Lee et al., arXiv 2107.06499, who call 0.8 near-duplicates.
SIMILAR = 0.8
# 128 permutations estimate a similarity of 0.8 with a standard error of sqrt(0.8 * 0.2 / 128) = 0.035.
PERMUTATIONS, SEED = 128, 1
# 16 bands of 8: prompts of similarity s meet with 1 - (1 - s^8)^16: 95% at 0.8, 99.99% at 0.9, 6% at 0.5.
BANDS = 16


class Fingerprint(NamedTuple):
    """The part of a pair that comparisons need."""

    prompt: int  # digest of the prompt
    answers: int  # digest of the prompt and both answers in alphabetical order
    is_swapped: bool  # rejected is the first of the two: the same in repeated pairs, different in conflicting ones
    minhash: Any  # sketch of the prompt's word triples

    @classmethod
    def of(cls, texts: PairTexts) -> Fingerprint:
        """Return the fingerprint of a pair with these texts."""
        prompt, chosen, rejected = plain(texts.prompt), texts.chosen.strip(), texts.rejected.strip()
        answers = sorted((chosen, rejected))
        return cls(_digest(prompt), _digest(prompt, *answers), rejected < chosen, sketch(prompt))


def sketch(prompt: str) -> Any:
    """Return the MinHash of the word triples of a text that ``plain`` made; a text of fewer words is one piece.

    In text without spaces between words, triples of characters take their place.
    """
    words = words_or_characters(prompt)
    last = max(1, len(words) - SHINGLE_WORDS + 1)
    minhash = RMinHash(num_perm=PERMUTATIONS, seed=SEED)
    minhash.update([" ".join(words[start : start + SHINGLE_WORDS]) for start in range(last)])
    return minhash


def _digest(*parts: str) -> int:
    digest = blake2b(digest_size=8)
    for part in parts:
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return int.from_bytes(digest.digest(), "little")


class PromptIndex:
    """An index that finds the same prompt by its digest and a similar one by its sketch."""

    def __init__(self) -> None:
        self._digests: set[int] = set()
        self._sketches: list[RMinHash] = []
        self._buckets = RMinHashLSH(threshold=SIMILAR, num_perm=PERMUTATIONS, num_bands=BANDS)

    def has_same(self, pair: Fingerprint) -> bool:
        """Return whether the prompt was added before."""
        return pair.prompt in self._digests

    def has_similar(self, pair: Fingerprint) -> bool:
        """Return whether a prompt was added before that has a similarity of at least ``SIMILAR``."""
        return any(
            self._sketches[number].jaccard(pair.minhash) >= SIMILAR for number in self._buckets.query(pair.minhash)
        )

    def add(self, pair: Fingerprint) -> bool:
        """Add a prompt; return whether a similar one was there, which is then found in place of both."""
        is_similar = self.has_similar(pair)
        self._digests.add(pair.prompt)
        if not is_similar:
            self._buckets.insert(len(self._sketches), pair.minhash)
            self._sketches.append(pair.minhash)
        return is_similar


class Duplicates:
    """A comparison of every row with the rows before it, and with the prompts of an evaluation set if there is one."""

    def __init__(self, evaluation: PromptIndex | None = None):
        self._evaluation = evaluation
        self._prompts = PromptIndex()
        self._pairs: dict[int, tuple[int, bool]] = {}  # digest of the answers -> first row with it, its is_swapped

    def compare(self, row: int, pair: Fingerprint) -> list[tuple[Check, int]]:
        """Compare a row with those before it; return the checks it fails, with the number of the faulty row.

        That is the row itself or, of two that conflict, each.
        """
        hits = []
        evaluation = self._evaluation
        if evaluation is not None and (evaluation.has_same(pair) or evaluation.has_similar(pair)):
            hits.append((catalogue.EVALUATION_OVERLAP, row))
        first, is_swapped = self._pairs.setdefault(pair.answers, (row, pair.is_swapped))
        if first != row:
            if is_swapped == pair.is_swapped:
                return [*hits, (catalogue.DUPLICATE_PAIRS, row)]
            return [*hits, (catalogue.CONFLICTS, first), (catalogue.CONFLICTS, row)]
        if self._prompts.has_same(pair):
            return [*hits, (catalogue.DUPLICATE_PROMPTS, row)]
        return [*hits, (catalogue.SIMILAR_PROMPTS, row)] if self._prompts.add(pair) else hits
