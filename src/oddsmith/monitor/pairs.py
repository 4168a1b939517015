"""What a run recorded of its pairs and answers, in the shape the page expects; whatever else is there is left out."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from ..system.run_folder import PAIRS_FILE
from .tail import open_plain

LARGEST_FILE_BYTES = 8_000_000
KINDS = ("worst", "flipped", "forgotten")
MOST_EACH, MOST_CHARACTERS = 50, 20_000


def number(value: Any) -> float | None:
    """A finite number; ``None`` for anything else."""
    usable = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    return float(value) if usable and math.isfinite(value) else None


def numbers(values: Any, most: int = 2000) -> list[float | None]:
    """A list of numbers; empty for anything else."""
    return [number(value) for value in values[:most]] if isinstance(values, list) else []


def clean_snapshot(event: dict[str, Any]) -> dict[str, Any] | None:
    """The margins of an evaluation, from its event ``pairs``.

    Args:
        event: The line of the diary.

    Returns:
        ``set``, ``step``, ``margins``, ``below_zero`` and ``log_odds``; ``None`` if they are not all there.
    """
    margins, odds = event.get("margins"), event.get("log_odds")
    if not isinstance(margins, dict) or not isinstance(odds, dict):
        return None
    edges, counts = numbers(margins.get("edges")), numbers(margins.get("counts"))
    figures = [number(odds.get(name)) for name in ("mean", "deviation", "pairs")]
    share = number(event.get("below_zero"))
    if len(edges) != len(counts) + 1 or None in (*edges, *counts, *figures, share) or not figures[2]:
        return None
    return {
        "set": text(event.get("set"), 200),
        "step": event["step"],
        "margins": {"edges": edges, "counts": counts},
        "below_zero": share,
        "log_odds": {"mean": figures[0], "deviation": figures[1], "pairs": figures[2]},
    }


def clean_samples(event: dict[str, Any]) -> dict[str, Any]:
    """The answers of an event ``samples``."""
    answers = event.get("answers")
    kept = [one for one in answers[:MOST_EACH] if isinstance(one, dict)] if isinstance(answers, list) else []
    return {
        "set": text(event.get("set"), 200),
        "step": event["step"],
        "answers": [{name: text(one.get(name)) for name in ("Prompt", "Policy")} for one in kept],
    }


def read_pairs(folder: Path) -> list[dict[str, Any]]:
    """The telling pairs of a run folder's last evaluations.

    Args:
        folder: The run folder.

    Returns:
        One entry an evaluation set, with ``set``, ``step``, ``first_step`` (of the first evaluation),
        ``compared_with`` (the step that its tokens are compared with; 0 is the untrained model), ``lengths`` and
        ``inspected``; none where nothing readable is there.
    """
    descriptor = open_plain(folder / PAIRS_FILE)
    if descriptor is None:
        return []
    with os.fdopen(descriptor, "rb") as file:
        content = file.read(LARGEST_FILE_BYTES + 1)
    try:
        found = json.loads(content) if len(content) <= LARGEST_FILE_BYTES else None
    except (ValueError, RecursionError):
        return []
    sets = found.get("sets") if isinstance(found, dict) else None
    if not isinstance(sets, dict):
        return []
    return [_clean_set(name, one) for name, one in list(sets.items())[:MOST_EACH] if isinstance(one, dict)]


def _clean_set(name: str, found: dict[str, Any]) -> dict[str, Any]:
    lengths, inspected = found.get("lengths"), found.get("inspected")
    points = [numbers(one, 2) for one in lengths[:2000]] if isinstance(lengths, list) else []
    kinds = inspected if isinstance(inspected, dict) else {}
    return {
        "set": text(name, 200),
        **{name: number(found.get(name)) for name in ("step", "first_step", "compared_with")},
        "lengths": [one for one in points if len(one) == 2 and None not in one],
        "inspected": {kind: _clean_pairs(kinds.get(kind)) for kind in KINDS},
    }


def _clean_pairs(found: Any) -> list[dict[str, Any]]:
    pairs = [one for one in found[:MOST_EACH] if isinstance(one, dict)] if isinstance(found, list) else []
    return [
        {
            **{name: number(one.get(name)) for name in ("row", "margin", "before")},
            "prompt": text(one.get("prompt")),
            **{side: _clean_side(one.get(side)) for side in ("chosen", "rejected")},
        }
        for one in pairs
    ]


def _clean_side(found: Any) -> dict[str, Any]:
    side = found if isinstance(found, dict) else {}
    tokens = side.get("tokens")
    return {
        "tokens": [text(token, 1000) for token in tokens[:2000]] if isinstance(tokens, list) else [],
        "change": numbers(side.get("change")),
    }


def text(value: Any, most: int = MOST_CHARACTERS) -> str:
    """Text of bounded length; empty for what is none. Halves of characters, which UTF-8 cannot hold, are replaced."""
    return value[:most].encode("utf-8", errors="replace").decode("utf-8") if isinstance(value, str) else ""
