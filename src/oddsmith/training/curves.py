"""Draw the curves of a run as a small SVG picture, without a plotting library, which would be a large dependency."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..metrics import Place, shown_in
from ..system.run_folder import Event
from ..system.strict_json import number

MAX_POINTS = 300  # longer curves are averaged in groups
SMALLEST = 1e-100  # smaller numbers are drawn as 0
WIDTH, HEIGHT = 260, 190  # of a panel, in pixels
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 30, 44
TRAINING, HELD_OUT, TEXT, GRID = "#d9622b", "#1f6fb2", "#555b63", "#dfe2e6"

Points = list[tuple[float, float]]


def curves_svg(events: Iterable[Mapping[str, Any]]) -> str | None:
    """Return the SVG text of a run's event log; ``None`` if fewer than two points were logged.

    If a step was done twice, as after a resume, the last values count.
    """
    events = list(events)
    panels = [
        (metric.label, _points(events, Event.LOG, metric.name), _points(events, Event.EVALUATE, f"eval_{metric.name}"))
        for metric in shown_in(Place.CURVES)
    ]
    panels = [panel for panel in panels if len(panel[1]) + len(panel[2]) >= 2]
    if not panels:
        return None
    width, titles = WIDTH * len(panels), ", ".join(title for title, *_ in panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{HEIGHT}" viewBox="0 0 {width} {HEIGHT}"'
        f' role="img" aria-label="{titles} over the steps of the training"'
        ' font-family="system-ui, sans-serif" font-size="11">',
        f'<rect width="{width}" height="{HEIGHT}" fill="#ffffff"/>',  # readable on a dark page too
    ]
    for place, (title, training, held_out) in enumerate(panels):
        parts.append(f'<g transform="translate({place * WIDTH},0)">')
        parts += _panel(title, training, held_out)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>", ""])


def _points(events: Sequence[Mapping[str, Any]], kind: str, name: str) -> Points:
    """Return (step, value) of a metric in the order of the steps."""
    found = {
        event["step"]: float(value)
        for event in events
        if event["event"] == kind and (value := number(event.get(name))) is not None
    }
    points = sorted((float(step), value) for step, value in found.items())
    size = math.ceil(len(points) / MAX_POINTS)
    if size <= 1:
        return points
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def _panel(title: str, training: Points, held_out: Points) -> list[str]:
    """Draw grid, axes, the training curve and the dots of the held-out pairs."""
    xs, ys = ([point[axis] for point in training + held_out] for axis in (0, 1))
    x_ticks, y_ticks = _ticks(min(0.0, *xs), max(xs), 3), _ticks(min(ys), max(ys), 4)
    x_range = (0.0, max(*xs, x_ticks[-1]))
    y_range = (min(*ys, y_ticks[0]), max(*ys, y_ticks[-1]))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_range[0]) / ((x_range[1] - x_range[0]) or 1.0)
        up = (y - y_range[0]) / ((y_range[1] - y_range[0]) or 1.0)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = [f'<text x="{LEFT}" y="18" font-weight="bold" fill="{TEXT}">{title}</text>']
    for tick in y_ticks:
        _, y = place(0, tick)
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="{GRID}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end" fill="{TEXT}">{tick:.4g}</text>')
    for tick in x_ticks:
        x, _ = place(tick, y_range[0])
        parts.append(
            f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle" fill="{TEXT}">{tick:,g}</text>'
        )
    line = " ".join("{:.1f},{:.1f}".format(*place(*point)) for point in training)
    parts.append(f'<polyline points="{line}" fill="none" stroke="{TRAINING}" stroke-width="1.8"/>')
    for point in held_out:
        x, y = place(*point)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" fill="{HELD_OUT}"/>')
    return parts + _legend(bool(training), bool(held_out))


def _legend(training: bool, held_out: bool) -> list[str]:
    y = HEIGHT - 10
    parts, x = [], LEFT
    if training:
        parts.append(f'<line x1="{x}" y1="{y - 4}" x2="{x + 16}" y2="{y - 4}" stroke="{TRAINING}" stroke-width="1.8"/>')
        parts.append(f'<text x="{x + 21}" y="{y}" fill="{TEXT}">training</text>')
        x += 84
    if held_out:
        parts.append(f'<circle cx="{x + 4}" cy="{y - 4}" r="3.2" fill="{HELD_OUT}"/>')
        parts.append(f'<text x="{x + 12}" y="{y}" fill="{TEXT}">held-out pairs</text>')
    return parts


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Return round numbers from at most ``low`` to at least ``high``: 1, 2 or 5 times a power of ten apart."""
    largest = max(abs(low), abs(high))
    if high - low <= 1e-9 * largest or largest < SMALLEST:  # too close for their digits to tell
        around = largest / 10 if largest >= SMALLEST else 1.0
        low, high = low - around, high + around
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]
