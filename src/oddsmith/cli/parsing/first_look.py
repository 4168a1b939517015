"""Refuse what can be refused of a command's settings, model and pairs before torch is imported, which takes seconds.

    values      ranges, choices and contradictions           config/ranges.py, config/model.py
    model       a folder, a file, a name on the hub          model/loading/first_look.py
    pairs       files, splits, columns of the first rows     data/sources/first_look.py

A run checks all of it again by the same functions, with what can only be seen once torch is there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...system.words import word_of
from .resolve import Resolved, refuse_of_scripts, require_length, with_origins

if TYPE_CHECKING:
    from ...config import ScriptArguments


def first_look(resolved: Resolved, *, only_measures: bool = False, only_plans: bool = False) -> None:
    """Look at the settings of a run, its model and its pairs.

    ``only_measures`` is for pairs that are measured as they are: one split of one dataset; ``only_plans`` for a run on
    another machine, whose packages are not asked for. The errors are those of :func:`resolve.build`, of loading the
    model, and of reading the rows.
    """
    from ...config import ModelConfig, ScriptArguments
    from ...config.model import require_bitsandbytes
    from ...data.sources import offering
    from ...model.loading.first_look import look_at_model

    values = look_at_values(resolved)
    with with_origins(resolved):
        model = ModelConfig(**resolved.of("ModelConfig"))
        data = ScriptArguments(**resolved.of("ScriptArguments"))
        require_length(values["max_steps"], data)
        if not only_plans:
            require_bitsandbytes(model)
    look_at_model(str(model.model_name_or_path), model.model_revision)
    with offering(data.columns, of_one_dataset=not data.datasets):
        _look_at_pairs(data, values, only_measures)


def look_at_values(resolved: Resolved) -> dict[str, Any]:
    """Look at the settings of the training alone; return all of them, by name."""
    from ...config.ranges import require_sensible

    values = {name: resolved.get(name) for name, field in resolved.fields.items() if field.owner == "ORPOConfig"}
    refuse_of_scripts(resolved)
    with with_origins(resolved):
        require_sensible(values)
    return values


def _look_at_pairs(data: ScriptArguments, values: dict[str, Any], only_measures: bool) -> None:
    from ...data.sources.first_look import look_at_datasets, look_at_rows

    if only_measures and not data.datasets:
        look_at_rows(str(data.dataset_name), data.dataset_test_split, data.columns, "eval", values["bad_rows"])
        return
    holds_out = data.eval_dataset_name is not None or data.test_split_size is not None
    evaluates = only_measures or holds_out or word_of(values["eval_strategy"]) != "no"
    look_at_datasets(data, evaluate=evaluates, bad_rows=values["bad_rows"])
