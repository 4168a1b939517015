"""The sets of real pairs, and their one split: no dialogue, and no prompt much like another, is on both sides.

The files are not part of this project. FOLDER holds them as JSON Lines with ``prompt``, ``chosen`` and ``rejected`` as
lists of messages; SETS says where each comes from.
"""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from oddsmith.data.checks.duplicates import SIMILAR, sketch
from oddsmith.data.checks.texts import plain

from .lab import read_rows


class Source(NamedTuple):
    """Where pairs come from, and how many of them are held out."""

    origin: str
    licence: str
    test: int
    validation: int


SETS = {
    "hh_helpful_base": Source("Anthropic/hh-rlhf, helpful-base, test split", "MIT", 400, 150),
    "hh_helpful_rejection_sampled": Source("Anthropic/hh-rlhf, helpful-rejection-sampled, test split", "MIT", 400, 150),
    "orca_dpo_validation": Source("orca_dpo_pairs, a sample", "MIT", 80, 30),
    "dpo_en_demo": Source("LLaMA-Factory, data/dpo_en_demo", "Apache-2.0", 80, 30),
}
LONGEST = 12_000  # characters of a pair in all; trainings cut at max_length


class Split(NamedTuple):
    """Rows for training, for choosing settings, and for the result; and what was left out."""

    train: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    test: list[dict[str, Any]]
    left_out: dict[str, int]


def split(name: str, folder: Path) -> Split:
    """Return the split of a set, which is the same every time.

    Rows whose answers are the same or empty, that are longer than ``LONGEST``, and those that repeat a pair are left
    out. The rest is grouped: rows with the same first message of the user, which are turns of one dialogue, and rows
    whose prompts have a similarity of ``SIMILAR`` belong together. Groups are dealt out whole, in an order drawn once.
    """
    rows, left_out, seen = [], {"empty or equal answers": 0, "too long": 0, "repeated": 0}, set()
    for row in read_rows(folder / f"{name}.jsonl"):
        chosen, rejected = (row[side][-1]["content"].strip() for side in ("chosen", "rejected"))
        pair = (_prompt_of(row), chosen, rejected)
        if not chosen or not rejected or chosen == rejected:
            left_out["empty or equal answers"] += 1
        elif sum(map(len, pair)) > LONGEST:
            left_out["too long"] += 1
        elif pair in seen:
            left_out["repeated"] += 1
        else:
            seen.add(pair)
            rows.append(row)
    groups = _groups(rows)
    random.Random(name).shuffle(groups)
    source, parts = SETS[name], ([], [], [])
    for group in groups:
        is_full = (len(parts[0]) >= source.test, len(parts[1]) >= source.validation, False)
        parts[is_full.index(False)].extend(rows[number] for number in group)
    test, validation, train = parts
    random.Random(f"{name} order").shuffle(train)
    return Split(train, validation, test, left_out)


def _prompt_of(row: dict[str, Any]) -> str:
    return "\n".join(message["content"] for message in row["prompt"])


def _groups(rows: list[dict[str, Any]]) -> list[list[int]]:
    """Return the numbers of rows that belong together, by joining each with the first like it."""
    leader = list(range(len(rows)))

    def first(number: int) -> int:
        while leader[number] != number:
            number = leader[number]
        return number

    openings: dict[str, int] = {}
    sketches = [sketch(plain(_prompt_of(row))) for row in rows]
    for number, row in enumerate(rows):
        opening = plain(next(message["content"] for message in row["prompt"] if message["role"] == "user"))
        leader[first(number)] = first(openings.setdefault(opening, number))
        for other in range(number):
            if first(other) != first(number) and sketches[other].jaccard(sketches[number]) >= SIMILAR:
                leader[first(number)] = first(other)
    found = defaultdict(list)
    for number in range(len(rows)):
        found[first(number)].append(number)
    return list(found.values())
