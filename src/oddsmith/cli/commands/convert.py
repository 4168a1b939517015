"""``oddsmith convert``: print the recipe of another trainer as ours, and what is different."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...config.foreign import KNOWN
from ...config.foreign.recipe import Difference, Line, Recipe
from ..parsing.config_file import Setting
from ..parsing.foreign_files import checked, read_foreign, translated_recipe
from ..parsing.resolve import resolve_word
from ..parsing.schema import load_fields
from ..terminal.console import quiet_libraries, say, show
from ..terminal.outcome import JSON, TRACEBACK, Judged
from .train.run_folder import shareable

USAGE = "oddsmith convert FILE > recipe.yaml"
INTRO = (
    f"Translates an ORPO recipe of another trainer ({KNOWN}) into ours: YAML, JSON, the flags of a shell script, or"
    " the calls of a Python script or notebook, which is read and never run. What the other trainer does where its"
    " recipe is silent is written out.",
    "The recipe goes to stdout; what means something else here, and what has no counterpart, to stderr. Exit code 3:"
    " the training would be another one until you decide on what is named.",
)
OPTIONS = (JSON, TRACEBACK)
UNDECIDED = 3
HEADINGS = {
    "changed": "Means something else here:",
    "same": "Has no counterpart; the result is the same without it:",
    "undecided": "Has no counterpart, and the training is another one without it:",
}


def convert(arguments: Sequence[str]) -> Judged:
    """Run ``oddsmith convert``; the exit code is 3 where somebody has to decide."""
    quiet_libraries()
    path, given = resolve_word(arguments, OPTIONS, "file", USAGE)
    foreign = read_foreign(path)
    recipe = translated_recipe(path, foreign)
    settings = checked(recipe, load_fields())
    undecided = [difference for difference in recipe.missing if difference.decides]
    parts = {
        "changed": recipe.changed,
        "same": [difference for difference in recipe.missing if not difference.decides],
        "undecided": undecided,
    }
    text = _recipe_text(path, recipe, settings, undecided)
    if "json" not in given:
        show(text, end="")
        say(f"{path}: a recipe of {recipe.trainer}, {len(recipe.given)} settings there, {len(settings)} here", "bold")
        for heading, differences in parts.items():
            _say_part(HEADINGS[heading], differences)
    document: dict[str, Any] = {"command": "convert", "trainer": recipe.trainer, "recipe": text}
    document["settings"] = {name: setting.value for name, setting in settings.items()}
    for name, differences in parts.items():
        document[name] = [{"name": one.name, "where": one.where, "text": one.text} for one in differences]
    return Judged(document, UNDECIDED if undecided else 0)


def _recipe_text(path: str, recipe: Recipe, settings: dict[str, Setting], undecided: list[Difference]) -> str:
    heads = [f"Translated from {Path(path).name}, a recipe of {recipe.trainer}, by oddsmith convert."]
    heads += [f"NOT TRANSLATED, decide: {one.name}: {one.text}" for one in undecided]
    lines = [f"# {_in_a_line(head)}" for head in heads]  # whatever the other recipe holds
    for name, setting in settings.items():
        text, secret = shareable(name, setting.value)
        remark = secret or _remark(name, recipe.lines[name], recipe.trainer)
        lines.append(f"{text}  # {remark}" if remark else text)
    return "\n".join(lines) + "\n"


def _remark(name: str, line: Line, trainer: str) -> str:
    """Return the comment of a line: where it comes from, if not from the same name, and what has changed."""
    source = f"{line.source}" if line.source not in ("", name) else "" if line.source else f"{trainer}'s default"
    text = "; ".join(filter(None, [source, line.note]))
    return _in_a_line(text)


def _in_a_line(text: str) -> str:
    return " ".join(text.split())


def _say_part(heading: str, differences: Sequence[Difference]) -> None:
    if not differences:
        return
    say(heading, "bold")
    width = min(28, max(len(difference.name) for difference in differences))
    for difference in differences:
        say(f"  {_in_a_line(difference.name):<{width}}  {_in_a_line(difference.text)}", hang=width + 4)
