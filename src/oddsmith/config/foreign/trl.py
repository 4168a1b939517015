"""Translate a recipe of TRL or alignment-handbook, and what an Unsloth or TRL script gives to its calls.

Their names are ours (``config/spellings.py`` knows the older ones), so ``oddsmith train`` takes their files as they
are; here their defaults are added. Source: TRL 1.16's ``ORPOConfig`` and ``ModelConfig``; alignment-handbook's
``scripts/orpo.py`` and ``data.py``; Unsloth's ``models/rl.py`` and ``FastLanguageModel``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import ConfigError
from ..spellings import first_share
from .recipe import LOSS_OF_A_STEP, Given, Recipe, set_datasets

NAME = "TRL"
UNSLOTH = "Unsloth"
METHODS = MARKS = frozenset({"dataset_mixture"})  # of newer recipes of alignment-handbook
_DEFAULTS: dict[str, Any] = {"learning_rate": 1e-6, "max_length": 1024, "beta": 0.1, "gradient_checkpointing": True}
# Those of a script that imports Unsloth, which patches TRL's classes.
_DEFAULTS_OF_UNSLOTH: dict[str, Any] = {
    **_DEFAULTS,
    "learning_rate": 5e-5,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "weight_decay": 0.01,
    "warmup_steps": 0.1,
    "seed": 3407,
    "optim": "adamw_8bit",
}
ROWS_BY_CODE = "dataset.map"  # stands for a script's own changes of the rows
_ADAPTER_OF_UNSLOTH = {"lora_r": 16, "lora_alpha": 16, "lora_dropout": 0.0}


class Code(str):
    """A value that a script computes: its source."""


def translate(given: Given, folder: Path) -> Recipe:
    """Translate a recipe of TRL or alignment-handbook; ``folder`` is not used."""
    recipe = _translate(Recipe(NAME, given), _DEFAULTS)
    wanted = {name for name, line in recipe.lines.items() if line.value}
    if "load_in_4bit" in wanted and "use_bnb_nested_quant" not in recipe.lines:
        recipe.set("use_bnb_nested_quant", False)
    if "use_peft" in wanted and not recipe.has("lora_target_modules"):
        recipe.change(
            "lora_target_modules",
            "PEFT chooses layers by the model where none are named (q_proj and v_proj of a Llama); here all linear ones"
            " get an adapter: name those that you want",
        )
    return recipe


def translate_unsloth(given: Given, folder: Path) -> Recipe:
    """Translate what an Unsloth script gives to its calls, under TRL's names; ``folder`` is not used."""
    recipe = Recipe(UNSLOTH, given)
    if recipe.has("lora_r") or recipe.has("use_peft"):
        for name, default in _ADAPTER_OF_UNSLOTH.items():
            recipe.rename(name, name, default)
    recipe.change("kernels", "layers and head save time and memory here by themselves; Unsloth's are not used")
    return _translate(recipe, _DEFAULTS_OF_UNSLOTH)


def _translate(recipe: Recipe, defaults: dict[str, Any]) -> Recipe:
    for name, placed in recipe.given.items():
        if isinstance(placed.value, Code) and name in ("bf16", "fp16"):
            recipe.leave(name, "what the hardware can do is found out here, too")
        elif isinstance(placed.value, Code):
            recipe.leave(name, f"is computed by the script; give {name} a value", decides=True)
    recipe.leave_all({ROWS_BY_CODE: "the script makes the rows: write them into a file, and name it"}, decides=True)
    _translate_mixture(recipe)
    recipe.take_rest()
    for name, default in defaults.items():
        if name not in recipe.lines:
            recipe.set(name, default)
    if recipe.lines.get("max_prompt_length") is None:
        recipe.change(
            "max_prompt_length", "older TRL cut the prompts of longer pairs to 512 tokens by default; here none is cut"
        )
    if not recipe.has("dtype") and not recipe.has("torch_dtype") and "use_peft" not in recipe.lines:
        recipe.set("dtype", "float32")
    template = recipe.lines.get("chat_template")
    if template and "{" in str(template.value):
        recipe.change("chat_template", "markers that it writes, such as <|user|>, become tokens, with rows")
    recipe.change(*LOSS_OF_A_STEP)
    return recipe


def _translate_mixture(recipe: Recipe) -> None:
    """Translate the datasets of a newer recipe of alignment-handbook."""
    mixture = recipe.take("dataset_mixture")
    if mixture is None:
        return
    parts = mixture.get("datasets") if isinstance(mixture, dict) else None
    if not isinstance(parts, list) or not all(isinstance(part, dict) and part.get("id") for part in parts):
        raise ConfigError("dataset_mixture: expected datasets, a list of mappings, each with an id")
    found = []
    for part in parts:
        split = first_share(str(part.get("split") or "train"), part.get("weight") or 1, "dataset_mixture")
        entry = {"path": part["id"], "name": part.get("config"), "split": split}
        found.append({key: value for key, value in entry.items() if value is not None})
    note = (
        "a share of a dataset are its first rows, not random ones" if any(part.get("weight") for part in parts) else ""
    )
    set_datasets(recipe, found, "dataset_mixture", note)
    if mixture.get("test_split_size"):
        recipe.set("test_split_size", mixture["test_split_size"], "dataset_mixture")
