"""Fingerprints: what a process that reads rows sends on, so that one place can tell which rows are alike.

A pair becomes about 700 bytes however long its texts are. Texts are compared without case and blanks.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, NamedTuple

from rensa import RMinHash

from .texts import PairTexts, plain

# 128 permutations estimate a similarity of 0.8 with a standard error of sqrt(0.8 * 0.2 / 128) = 0.035.
PERMUTATIONS = 128
SEED = 1
SHINGLE_WORDS = 3


class Fingerprint(NamedTuple):
    """What is remembered of a pair.

    Args:
        prompt: Digest of the prompt.
        answers: Digest of prompt and both answers, whichever of them is preferred.
        is_swapped: Which of the two is preferred: compares equal for repeated pairs, not for conflicting ones.
        minhash: Sketch of the prompt's word triples.
    """

    prompt: int
    answers: int
    is_swapped: bool
    minhash: Any


def fingerprint(texts: PairTexts) -> Fingerprint:
    """The fingerprint of a pair.

    Args:
        texts: Its texts.

    Returns:
        The fingerprint.
    """
    prompt, chosen, rejected = plain(texts.prompt), texts.chosen.strip(), texts.rejected.strip()
    is_swapped = rejected < chosen
    first, second = (rejected, chosen) if is_swapped else (chosen, rejected)
    return Fingerprint(_digest(prompt), _digest(prompt, first, second), is_swapped, sketch(prompt))


def sketch(prompt: str) -> Any:
    """MinHash of the word triples of a text that ``plain`` made; shorter texts are one piece.

    In text without blanks between words, triples of characters take their place.
    """
    words: list[str] | str = prompt.split()
    if len(prompt) > 20 * max(1, len(words)):
        words = prompt
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
