"""``oddsmith recipes``: list the recipes that come with the package, or print one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..parsing.recipes import FACTS, shipped_recipe, shipped_recipes
from ..parsing.resolve import resolve
from ..terminal.console import quiet_libraries, show, show_line
from ..terminal.outcome import JSON, TRACEBACK

USAGE = "oddsmith recipes [NAME]"
INTRO = (
    "Lists recipes to start from: some were run by us, with what was measured; of the others settings and source"
    " are published. With a name, prints one.",
    "`oddsmith train --recipe NAME --dataset-name pairs.jsonl` starts from one, with any flags on top.",
)
OPTIONS = (JSON, TRACEBACK)


def recipes(arguments: Sequence[str]) -> dict[str, Any]:
    """Run ``oddsmith recipes``; return the recipes as JSON values."""
    quiet_libraries()
    resolved = resolve(arguments, {}, OPTIONS, max_positional=1)
    is_json = "json" in resolved.options
    if resolved.positional:
        recipe = shipped_recipe(resolved.positional[0])
        if not is_json:
            show(recipe.text, end="")
        return {"command": "recipes", "name": recipe.name, **recipe.facts, "recipe": recipe.text}
    found = list(shipped_recipes().values())
    if not is_json:
        for recipe in found:
            show(recipe.name)
            for fact in FACTS:
                show_line(f"  {fact:<9} {recipe.facts[fact]}")
    return {"command": "recipes", "recipes": [{"name": recipe.name, **recipe.facts} for recipe in found]}
