"""Show the evaluations of a run in a notebook in a table of few columns.

transformers' table there has a column for each value of an evaluation, of which ORPO's twenty are wider than a page. It
also takes values out of the metrics that other callbacks and the caller of ``evaluate`` get.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..diagnose.names import held_out_name
from ..metrics import Place, shown_in

OF_TRANSFORMERS = "NotebookProgressCallback"  # is imported only in a notebook, as it needs IPython
SHOWN = frozenset(metric.name for metric in shown_in(Place.TABLE))
OF_THE_CLOCK = ("runtime", "per_second", "preparation_time")


def in_few_columns(callback: Any) -> Any:
    """Return the class of transformers' table in notebooks with few columns; any other callback as it is."""
    return _in_few_columns(callback) if getattr(callback, "__name__", "") == OF_TRANSFORMERS else callback


def values_shown(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics of an evaluation that ``oddsmith eval`` shows, and those that the user has added."""
    return {name: value for name, value in metrics.items() if _is_shown(name)}


def _is_shown(name: str) -> bool:
    found = held_out_name(name)
    return not name.endswith((*OF_THE_CLOCK, "epoch")) if found is None else found[1] in SHOWN


def _in_few_columns(callback: type) -> type:
    class NotebookProgress(callback):
        only_looks_on = True

        def on_evaluate(self, *arguments: Any, metrics: Mapping[str, Any] | None = None, **named: Any) -> None:
            super().on_evaluate(*arguments, metrics=values_shown(metrics or {}), **named)

    return NotebookProgress
