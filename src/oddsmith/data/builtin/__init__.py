"""Read the preference pairs of the demo, which are shipped with the package: simple questions in two splits.

    {"prompt": [{"role": "user", ...}], "chosen": [{"role": "assistant", ...}], "rejected": [{...}]}

The questions were written for this project; both answers are SmolLM2-135M-Instruct's own, to questions whose answer it
knows. The chosen ones are short, right and in one house style (``style.py``, ``facts.py``); the rejected ones are
what the model usually says, which breaks it. ``scripts/make_demo_pairs.py`` makes them.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any, Literal

from ...errors import DataError

FILES = {"train": "pairs_train.jsonl", "heldout": "pairs_heldout.jsonl"}
FACTS = "facts.json"


def demo_pairs(split: Literal["train", "heldout"]) -> list[dict[str, Any]]:
    """Return the rows of a split; the questions of ``"heldout"`` share no wording with those of ``"train"``."""
    if split not in FILES:
        raise DataError(f"the demo's pairs have no split {split!r}; expected one of: {', '.join(FILES)}")
    text = (files(__name__) / FILES[split]).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def accepted_answers() -> dict[str, list[str]]:
    """Return the accepted answers of every question in the demo's pairs, by the question; see ``facts.py``."""
    accepted: dict[str, list[str]] = json.loads((files(__name__) / FACTS).read_text(encoding="utf-8"))
    return accepted
