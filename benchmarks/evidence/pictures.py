"""Draw lines of several panels as one SVG, without a background, in colours that read on a light and on a dark page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

import numpy as np

WIDTH, HEIGHT, LEFT, TOP, BOTTOM, BETWEEN = 330, 250, 52, 46, 44, 30  # pixels of a panel
COLOURS = ("#2f7fc1", "#d9622b", "#1a9850", "#8b5fbf")
STYLE = """<style>
text { font-family: system-ui, sans-serif; font-size: 12px; fill: #6b7178 }
.title { font-weight: bold; font-size: 13px }
.grid { stroke: #8b929b; stroke-opacity: .3 } .axis { stroke: #8b929b }
@media (prefers-color-scheme: dark) { text { fill: #b3bac2 } }
</style>"""


class Line(NamedTuple):
    """A line: its name, x [E], and y [S, E] of several seeds, whose mean is drawn thick and each of them thin."""

    name: str
    x_E: np.ndarray
    y_SE: np.ndarray


def gap_picture(curves: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    """Return panels of chosen and rejected log-probabilities, one for each method."""
    panels = {
        method: [Line(side, found["steps"], found[side]) for side in ("chosen", "rejected")]
        for method, found in curves.items()
    }
    return panels_of(panels, "optimizer step", "held-out log-probability, nats a token")


def panels_of(panels: Mapping[str, Sequence[Line]], x_name: str, y_name: str) -> str:
    """Return an SVG with a panel for each name, all on one scale."""
    every = [line for lines in panels.values() for line in lines]
    low, high = (pick(line.y_SE.min() if pick is min else line.y_SE.max() for line in every) for pick in (min, max))
    room = 0.06 * (high - low) or 1.0
    bounds = (0.0, float(max(line.x_E.max() for line in every)), float(low - room), float(high + room))
    width = LEFT + len(panels) * (WIDTH + BETWEEN)
    height = TOP + HEIGHT + BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        f' role="img" aria-label="{escape(y_name)} over {escape(x_name)}: {escape(", ".join(panels))}">',
        STYLE,
        f'<text x="8" y="18">{escape(y_name)}</text>',
    ]
    for number, (name, lines) in enumerate(panels.items()):
        parts += _panel(name, lines, LEFT + number * (WIDTH + BETWEEN), bounds, x_name, is_first=number == 0)
    return "\n".join([*parts, "</svg>", ""])


def _panel(
    name: str, lines: Sequence[Line], left: int, bounds: tuple[float, ...], x_name: str, is_first: bool
) -> list[str]:
    x_low, x_high, y_low, y_high = bounds
    bottom = TOP + HEIGHT

    def at(x: float, y: float) -> tuple[float, float]:
        return left + (x - x_low) / (x_high - x_low) * WIDTH, bottom - (y - y_low) / (y_high - y_low) * HEIGHT

    parts = [f'<text class="title" x="{left}" y="{TOP - 10}">{escape(name)}</text>']
    for tick in _ticks(y_low, y_high):
        _, y = at(x_low, tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{left + WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
        if is_first:
            parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    parts.append(f'<line class="axis" x1="{left}" x2="{left + WIDTH}" y1="{bottom}" y2="{bottom}"/>')
    for tick in _ticks(x_low, x_high):
        x, _ = at(tick, y_low)
        parts.append(f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<text x="{left + WIDTH / 2:.1f}" y="{bottom + 36}" text-anchor="middle">{escape(x_name)}</text>')
    for line, colour in zip(lines, COLOURS, strict=False):
        for y_E in line.y_SE:
            parts.append(_path([at(*point) for point in zip(line.x_E, y_E, strict=True)], colour, 1, 0.35))
        mean_E = line.y_SE.mean(axis=0)
        parts.append(_path([at(*point) for point in zip(line.x_E, mean_E, strict=True)], colour, 2.5, 1))
        x, y = at(line.x_E[-1], mean_E[-1])
        parts.append(
            f'<text x="{x - 4:.1f}" y="{y - 8:.1f}" text-anchor="end" style="fill:{colour}">{escape(line.name)}</text>'
        )
    return parts


def _path(points: Sequence[tuple[float, float]], colour: str, width: float, opacity: float) -> str:
    drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return (
        f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-opacity="{opacity}"/>'
    )


def _ticks(low: float, high: float) -> list[float]:
    """Return four to eight round numbers between two."""
    step = 10.0 ** np.floor(np.log10((high - low) / 4))
    step *= next(times for times in (1, 2, 5, 10) if (high - low) / (step * times) <= 8)
    first = int(np.ceil(low / step))
    return [round(number * step, 10) for number in range(first, int(np.floor(high / step)) + 1)]
