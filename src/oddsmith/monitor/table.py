"""Describe a run in one row of the table of runs: its settings and its latest figures."""

from __future__ import annotations

import math
from typing import Any

from ..diagnose.findings import Verdict, overall
from ..diagnose.names import in_set
from .run import Run
from .series import GrowingSeries

MAX_COLUMNS = 500
NOT_FINITE = "not finite"


def row_of(run: Run) -> dict[str, Any]:
    """Return ``id``, ``verdict``, ``settings`` (texts) and ``figures`` (the last value of every metric)."""
    groups = [("", run.training)] + [(name, group) for name, group in run.held_out.items()]
    figures: dict[str, float | str] = {}
    for name, group in groups:
        for metric, series in group.items():
            value = _last(series)
            if value is not None and len(figures) < MAX_COLUMNS:
                figures[metric if group is run.training else in_set(name, metric)] = value
    verdict = overall(Verdict(one["verdict"]) for one in run.findings())
    settings = dict(list(run.settings_texts().items())[:MAX_COLUMNS])
    return {"id": run.id, "verdict": str(verdict), "settings": settings, "figures": figures}


def _last(series: GrowingSeries) -> float | str | None:
    """Return the last value of a curve, in words where it is NaN or infinite; ``None`` without any."""
    values = series.points.values
    if not len(values):
        return None
    return float(f"{values[-1]:.6g}") if math.isfinite(values[-1]) else NOT_FINITE
