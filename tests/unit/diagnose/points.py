"""What a history holds, for comparisons in tests."""

from oddsmith.diagnose.history import History


def points(history: History, name: str) -> list[tuple[float, float]]:
    series = history.get(name)
    return list(zip(series.steps.tolist(), series.values.tolist(), strict=True))
