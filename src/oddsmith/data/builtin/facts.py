"""Check whether an answer has the fact that its question asks for, by the words that are accepted.

Each question of the demo has a short list of accepted answers (``facts.json``). An answer has the fact if one of them
stands in it as whole words, in upper or lower case, where ``*`` stands for any more letters:

    has_fact("The capital of Japan is Tokyo.", ["Tokyo"])    -> True
    has_fact("It tells sailors the way.", ["navigat*"])      -> False

The rule is blind to what else an answer says, so it is kind to long answers: they have more words to hit.
"""

from __future__ import annotations

import re
from collections.abc import Sequence


def has_fact(answer: str, accepted: Sequence[str]) -> bool:
    """Return whether one of the accepted answers stands in the answer."""
    return any(re.search(_pattern(one), answer, re.IGNORECASE) for one in accepted)


def _pattern(accepted: str) -> str:
    parts = r"\w*".join(map(re.escape, accepted.split("*")))
    return rf"(?<!\w){parts}(?!\w)"
