"""Read the preference pairs of the demo, which are shipped with the package: everyday questions in two splits.

    {"prompt": [{"role": "user", ...}], "chosen": [{"role": "assistant", ...}], "rejected": [{...}]}

The questions and the chosen answers were written for this project, all in one house style (``style.py``).
The rejected answers are the greedy replies of SmolLM2-135M-Instruct; ``scripts/make_demo_pairs.py`` makes them again.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any, Literal

from ...errors import DataError

FILES = {"train": "pairs_train.jsonl", "heldout": "pairs_heldout.jsonl"}


def demo_pairs(split: Literal["train", "heldout"]) -> list[dict[str, Any]]:
    """Return the rows of a split; the questions of ``"heldout"`` share no wording with those of ``"train"``."""
    if split not in FILES:
        raise DataError(f"the demo's pairs have no split {split!r}; expected one of: {', '.join(FILES)}")
    text = (files(__name__) / FILES[split]).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]
