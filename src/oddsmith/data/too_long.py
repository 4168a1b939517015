"""Say which ``max_length`` or ``max_prompt_length`` would keep the pairs that are dropped because they are too long.

    prompt_tokens  PPPPPPPPPPPPPPPPPPPP            the longer prompt of the two sides
    shared_tokens  PPPPPPPPPPPPPPPPPPPPrrr         what both sides begin with
    all_tokens     PPPPPPPPPPPPPPPPPPPPrrrrrrrrr   up to the last target of the longer side

A ``max_length`` keeps a pair if it is larger than the first two numbers, and keeps it whole from the last one on. A
``max_prompt_length`` takes as many tokens off all three as bring the prompt down to it. Both are chosen so that answers
are kept whole where that is possible.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .tokens.tokenized import Lengths

# Lengths that are suggested: 2^k and 1.5 * 2^k.
SUGGESTED = tuple(sorted([2**power for power in range(6, 24)] + [3 * 2**power for power in range(5, 23)]))
MOST = 0.95  # of the pairs should be kept whole, where that is possible
PROMPT_SHARES = (0.75, 0.5, 0.25)  # of max_length that is left to prompts


class Kept(NamedTuple):
    """How many pairs a limit keeps, and how many of them whole but for the beginning of the prompt."""

    limit: int
    pairs: int
    whole: int


def by_max_length(lengths: Sequence[Lengths], max_length: int, most_tokens: int | None = None) -> Kept | None:
    """Return the smallest suggested ``max_length`` that keeps most pairs whole; None where none keeps any.

    ``most_tokens`` is what the model can read.
    """
    limits = [limit for limit in SUGGESTED if limit > max_length and (most_tokens is None or limit <= most_tokens)]
    if most_tokens is not None and most_tokens > max_length and most_tokens not in limits:
        limits.append(most_tokens)
    found = [Kept(limit, *_kept(lengths, limit)) for limit in limits]
    return _first(found, [kept for kept in found if kept.whole >= MOST * len(lengths)])


def by_max_prompt_length(lengths: Sequence[Lengths], max_length: int) -> Kept | None:
    """Return the ``max_prompt_length`` that keeps most pairs, with whole answers where it can."""
    found = []
    for share in PROMPT_SHARES:
        limit = int(max_length * share)
        cut = [length.without(max(0, length.prompt_tokens - limit)) for length in lengths]
        found.append(Kept(limit, *_kept(cut, max_length)))
    return _first(found, [kept for kept in found if kept.whole >= MOST * len(lengths)])


def advice(lengths: Sequence[Lengths], max_length: int, most_tokens: int | None = None) -> str:
    """Return in words which limits keep how many of these pairs; empty where none does."""
    total, parts = len(lengths), []
    if longer := by_max_length(lengths, max_length, most_tokens):
        times = longer.limit / max_length
        whole = " whole" if longer.whole == longer.pairs else f", {_share(longer.whole, total)} whole"
        parts.append(
            f"max_length {longer.limit} keeps {_share(longer.pairs, total)} of them{whole} ({times:.2g} times the"
            " tokens take about as many times the memory)"
        )
    if shorter := by_max_prompt_length(lengths, max_length):
        whole = "" if shorter.whole == shorter.pairs else f", {_share(shorter.whole, total)} with whole answers"
        verb = "" if parts else " keeps"
        of_them = "" if parts else " of them"
        share = _share(shorter.pairs, total)
        parts.append(f"max_prompt_length {shorter.limit}{verb} {share}{of_them}{whole}, prompts cut from the left")
    return ", ".join(parts)


def _kept(lengths: Sequence[Lengths], limit: int) -> tuple[int, int]:
    kept = [length for length in lengths if max(length.prompt_tokens, length.shared_tokens) < limit]
    return len(kept), sum(length.all_tokens <= limit for length in kept)


def _first(found: Sequence[Kept], enough: Sequence[Kept]) -> Kept | None:
    """Return the first that is enough, else the first that keeps the most, whole ones first; None where none does."""
    best = enough[0] if enough else max(found, key=lambda kept: (kept.whole, kept.pairs), default=None)
    return best if best is not None and best.pairs else None


def _share(count: int, total: int) -> str:
    """Return a share in percent, between 1% and 99% where it is neither none nor all."""
    if count in (0, total):
        return "all" if count else "none"
    return f"{min(99, max(1, round(100 * count / total)))}%"
