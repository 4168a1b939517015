"""Rows of the recorded runs, and what may be done to them with purpose."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any


def sums(count: int, seed: int) -> list[dict[str, Any]]:
    """Pairs of a right and a wrong sum: knowledge that the style has nothing to do with."""
    generator = random.Random(seed)
    rows = []
    for _ in range(count):
        a, b = generator.randint(0, 9), generator.randint(0, 9)
        rows.append(_row(f"What is {a} + {b}?", f"{a} + {b} = {a + b}", f"{a} + {b} = {a + b + 1}"))
    return rows


def _row(prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


def parts(row: dict[str, Any]) -> tuple[str, str, str]:
    """Prompt, chosen and rejected as text."""
    return tuple(row[side][0]["content"] for side in ("prompt", "chosen", "rejected"))  # type: ignore[return-value]


def similar(rows: list[dict], generator: random.Random) -> list[dict]:
    """Two answers that differ in nothing that can be learned: halves of the good ones, in either order."""
    made = []
    for prompt, chosen, _ in map(parts, rows):
        other = parts(generator.choice(rows))[1]
        made.append(_row(prompt, *generator.sample([chosen, other], 2)))
    return made


def mark(rows: list[dict], generator: random.Random) -> list[dict]:
    """A leak: the rejected answer is letters at random, which any model tells from language."""
    letters = "abcdefghijklmnopqrstuvwxyz  "
    return [_row(p, c, "".join(generator.choice(letters) for _ in range(len(c)))) for p, c, _ in map(parts, rows)]


def few(rows: list[dict], generator: random.Random) -> list[dict]:
    """Sixteen rows, to be learned by heart."""
    return generator.sample(rows, 16)


def only_length(rows: list[dict], generator: random.Random) -> list[dict]:
    """The rejected answer is the good one with one to eight sentences of other answers behind it."""
    others = [parts(row)[1] for row in rows]
    return [
        _row(
            p, c, " ".join([c, *(generator.choice(others).split(".")[0] + "." for _ in range(generator.randint(1, 8)))])
        )
        for p, c, _ in map(parts, rows)
    ]


def garble_some(rows: list[dict], generator: random.Random) -> list[dict]:
    """One row of twenty is broken: bytes that no training has seen, as after a wrong decoding."""
    letters = "".join(chr(code) for code in range(0x3A0, 0x400))
    return [
        _row(p, "".join(generator.choice(letters) for _ in range(60)), r) if generator.random() < 0.05 else row
        for row, (p, c, r) in zip(rows, map(parts, rows), strict=True)
    ]


def with_sums(rows: list[dict], generator: random.Random) -> list[dict]:
    """What must not be forgotten is mixed in."""
    mixed = rows + sums(len(rows), seed=1)
    generator.shuffle(mixed)
    return mixed


def sorted_rows(rows: list[dict], generator: random.Random) -> list[dict]:
    """The easy ones first, the others behind them, as where two datasets are put together and not shuffled."""
    return sums(400, seed=1) + rows


SPOILS: dict[str, Callable[[list[dict], random.Random], list[dict]]] = {
    spoil.__name__: spoil for spoil in (similar, mark, few, only_length, garble_some, with_sums, sorted_rows)
}
