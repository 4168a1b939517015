"""Recognise the recipes of other trainers, and translate them into settings of ours. Needs no torch.

Each trainer has a module with what its settings mean, and with its defaults where they are not ours: a translated
recipe trains the same as the other trainer would, or says where it does not. ``docs/convert.md`` has the differences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from ..catalogue import SETTINGS
from ..inherited import FIELDS
from ..spellings import OLDER
from . import axolotl, llama_factory, swift, trl
from .recipe import Given, Recipe

_OURS = frozenset(next(fields for fields in FIELDS.values() if fields.note == "Oddsmith's own").names) | {
    "columns",
    "datasets",
    "eval_dataset_name",
    "init_lora_weights",
    "test_split_size",
}
_NEVER_THEIRS = frozenset(
    {"dataset_name", "eval_dataset_name", "nll_on", "prefix_forest", "test_split_size", "use_peft"}
)
TRANSLATORS: dict[str, Callable[[Given, Path], Recipe]] = {
    axolotl.NAME: axolotl.translate,
    llama_factory.NAME: llama_factory.translate,
    swift.NAME: swift.translate,
    trl.NAME: trl.translate,
    trl.UNSLOTH: trl.translate_unsloth,
}
KNOWN = f"{axolotl.NAME}, {llama_factory.NAME}, {swift.NAME}, {trl.UNSLOTH}, TRL or alignment-handbook"


def recognise(names: Mapping[str, Any]) -> str | None:
    """Return the trainer whose recipe has these names; ``None`` for names of TRL's, which are ours, too, or unknown.

    The setting of its method is enough, or two others that only this trainer has: one may be a slip. Beside names that
    only ours have, more may be, and no recipe of ORPO is without its trainer's method.
    Raises ``ConfigError`` for a recipe that has the marks of several trainers.
    """
    modules = (axolotl, llama_factory, swift, trl)
    marks = {module.NAME: sorted(module.MARKS & names.keys()) for module in modules}
    is_ours = _NEVER_THEIRS & names.keys() or ("model_name_or_path" in names and "dataset" not in names)
    needed = math.inf if is_ours else 2
    found = [module.NAME for module in modules if module.METHODS & names.keys() or len(marks[module.NAME]) >= needed]
    if len(found) > 1:
        of_each = " and ".join(f"{trainer} ({', '.join(marks[trainer][:3])})" for trainer in found)
        raise ConfigError(f"holds settings of {of_each}; expected the recipe of one trainer")
    return found[0] if found else None


def recognise_any(names: Mapping[str, Any]) -> str:
    """Return the trainer of a recipe that is to be translated, TRL among them.

    Raises ``ConfigError`` for a recipe of our own, and one of nobody that is known.
    """
    found = recognise(names)
    if found:
        return found
    if ours := sorted(_OURS & names.keys() - {"orpo_alpha", "orpo_beta", "max_prompt_length", "chat_template"}):
        raise ConfigError(f"is a recipe of Oddsmith already ({', '.join(ours[:3])}); oddsmith train takes it as it is")
    unknown = [name for name in names if name not in SETTINGS and name not in OLDER]
    if unknown or not names.keys() & {"model_name_or_path", "dataset_name", "dataset_mixer", "learning_rate", "beta"}:
        what = f" (unknown: {', '.join(unknown[:3])})" if unknown else ""
        raise ConfigError(f"is no recipe that is recognised{what}; expected one of {KNOWN}")
    return trl.NAME


def translate(trainer: str, given: Given, folder: Path) -> Recipe:
    """Translate the recipe of a trainer.

    Args:
        trainer: What ``recognise_any`` has returned.
        given: Its settings by name, each with its place.
        folder: Where the recipe lies; other files that it names are looked for in the working directory, then there.

    Returns:
        Settings of ours, and what is different.

    Raises:
        ConfigError: It trains by another method, or a setting has a value that is no such value.
    """
    return TRANSLATORS[trainer](given, folder)
