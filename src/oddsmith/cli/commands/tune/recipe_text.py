"""Write the recipe that won, with the evidence in its comments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .... import __version__
from ...parsing.config_file import Setting
from ...terminal.tune_table import plain_table
from ..train.run_folder import shareable, to_yaml

if TYPE_CHECKING:
    from ....tuning.search import Found


def recipe_text(settings: Mapping[str, Setting], found: Found, words: Sequence[str]) -> str:
    """Return a recipe of the settings with those of the winner, and what the search found as comments."""
    winner = found.decision.winner
    values = {} if winner is None else dict(winner.values)
    own = found.results[0].values
    lines = [f"Written by oddsmith tune {__version__}.", *words, "", *plain_table(found, list(own))]
    text = "".join(f"# {' '.join(line.split()) if line in words else line}".rstrip() + "\n" for line in lines)
    for name in dict.fromkeys([*settings, *values]):
        line, remark = shareable(name, values[name] if name in values else settings[name].value)
        if name in values:
            remark = "the recipe's own" if values[name] == own[name] else f"tuned, was {to_yaml(own[name])}"
        text += (f"{line}  # {remark}" if remark else line) + "\n"
    return text
