"""Find the recipes that come with the package, ``src/oddsmith/recipes``, and read what their first lines say of them.

# model: SmolLM2 135M Instruct        a fact of each comment, up to the first empty line
# source: github.com/xfactlab/orpo,
#   scripts/run_orpo.sh               goes on, indented

"""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from ...config.meant import nearest
from ...errors import ConfigError

FACTS = ("model", "method", "hardware", "measured", "source")  # that every recipe states
SUFFIXES = (".yaml", ".yml")
_FACT = re.compile(r"# (\w+): (.*)")
_SIZE = re.compile(r"(?<![\d.])([\d.]+)([MB])\b")


class Recipe(NamedTuple):
    """A recipe of the package."""

    name: str
    path: Path
    facts: dict[str, str]  # of FACTS, and ``note`` and ``start``
    text: str

    @property
    def parameters(self) -> float:
        """Return the size of its model, by the last size that its name holds."""
        number, unit = _SIZE.findall(self.facts["model"])[-1]
        return float(number) * (1e9 if unit == "B" else 1e6)


def shipped_recipes() -> dict[str, Recipe]:
    """Return the recipes of the package by name, the smallest model first."""
    found = []
    for entry in files("oddsmith").joinpath("recipes").iterdir():
        if entry.name.endswith(SUFFIXES):
            text = entry.read_text(encoding="utf-8")
            found.append(Recipe(Path(entry.name).stem, Path(str(entry)), _facts(text), text))
    return {recipe.name: recipe for recipe in sorted(found, key=lambda one: (one.parameters, one.name))}


def shipped_recipe(name: str) -> Recipe:
    """Return a recipe of the package; ``ConfigError`` with the most similar one for a name that is none."""
    recipes = shipped_recipes()
    if name not in recipes:
        meant = nearest(name, recipes)
        hint = f"did you mean {meant}?" if meant else f"expected one of {', '.join(recipes)};"
        raise ConfigError(f"no recipe is called {name[:60]!r}; {hint} `oddsmith recipes` lists them")
    return recipes[name]


def recipe_file(given: str) -> str:
    """Return the path of the recipe that ``--recipe`` names: that of a file as it stands, else one of the package."""
    if given.endswith(SUFFIXES) or "/" in given or Path(given).is_file():
        return given
    return str(shipped_recipe(given).path)


def _facts(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in text.partition("\n\n")[0].splitlines():
        if match := _FACT.fullmatch(line):
            found[match[1]] = match[2]
        elif found:
            found[next(reversed(found))] += f" {line.removeprefix('#').strip()}"
    return found
