"""Draw a search as one SVG: the gain of each probe with its interval, and gains over the first range.

It has no background, and its colours read on a light and on a dark page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from .objective import Interval, Outcome, comparisons_of, gain, is_sound
from .results import Result, State
from .search import Found
from .space import Range, Space, shown
from .verdict import interval_text, state_text

ROW, TOP, BOTTOM, MARGIN = 22, 54, 46, 16  # pixels
LABELS, BARS, FIGURES, PANEL = 250, 260, 170, 250
RADIUS = 4.0
STYLE = """<style>
text { font-family: system-ui, sans-serif; font-size: 12px; fill: #6b7178 }
.title { font-weight: bold; font-size: 13px } .small { font-size: 11px }
.axis { stroke: #8b929b; stroke-width: 1 } .grid { stroke: #8b929b; stroke-opacity: .3 }
.better { stroke: #1a9850; fill: #1a9850 } .noise { stroke: #8b929b; fill: #8b929b }
.worse { stroke: #d9622b; fill: #d9622b } .lost { stroke: #d73027; fill: none } .own { stroke: #2f7fc1; fill: #2f7fc1 }
line, circle { stroke-width: 2 }
@media (prefers-color-scheme: dark) { text { fill: #b3bac2 } }
</style>"""


def picture(found: Found, space: Space) -> str:
    """Return the SVG of what a search has found."""
    results = _sorted(found.results)
    gains = {one.name: gain(one, found.results[0], comparisons_of(found.results)) for one in results}
    drawn = {name: one for name, one in gains.items() if one is not None and math.isfinite(one.mean)}
    shown_gains = [drawn[one.name] for one in results if one.name in drawn and _is_drawn(one)]
    bounds = [end for one in shown_gains for end in one if math.isfinite(end)] or [0.0]
    low, high = min(0.0, *bounds), max(0.0, *bounds)
    room = 0.05 * (high - low) or 1.0
    low, high = low - room, high + room
    varied = next(((name, part) for name, part in space.items() if isinstance(part, Range)), None)
    width = 2 * MARGIN + LABELS + BARS + FIGURES + (PANEL + MARGIN if varied else 0)
    height = max(TOP + ROW * len(results) + BOTTOM, 240)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        f' role="img" aria-label="gains of {len(results)} probes over the recipe&#39;s own settings">',
        STYLE,
        _text(MARGIN, 20, "Gain over the recipe's own settings, nats a pair", "title"),
        _text(MARGIN, 38, f"{_HEADS[found.decision.outcome]}; bars: 95% for all together", "small"),
    ]
    parts += _forest(results, found, drawn, (low, high))
    if varied is not None:
        left = 2 * MARGIN + LABELS + BARS + FIGURES
        parts += _scatter(results, found, drawn, (low, high), *varied, left, height)
    return "\n".join([*parts, "</svg>", ""])


_HEADS = {
    Outcome.BETTER: "the best is better, with another seed too",
    Outcome.NOISE: "the difference of the best is noise",
    Outcome.OWN: "none is better",
    Outcome.ONLY: "the recipe's own settings cannot win",
    Outcome.NONE: "no probe can win",
}


def _sorted(results: Sequence[Result]) -> list[Result]:
    """Return the probes, the best first, those that lost last."""

    def key(one: Result) -> tuple[int, float]:
        cost = one.evaluations[-1].cost if one.evaluations else math.inf
        return (
            0 if is_sound(one) else 1 if one.state is State.PRUNED else 2,
            cost if math.isfinite(cost) else math.inf,
        )

    return sorted(results, key=key)


def _is_drawn(result: Result) -> bool:
    """Return whether a probe's gain is drawn: that of a whole one that has not lost, or all bars would be short."""
    return is_sound(result)


def _kind(result: Result, found: Found, interval: Interval) -> str:
    if result is found.results[0]:
        return "own"
    return "better" if interval.is_above_zero else "worse" if interval.is_below_zero else "noise"


def _forest(
    results: Sequence[Result], found: Found, gains: dict[str, Interval], ends: tuple[float, float]
) -> list[str]:
    left, bottom = MARGIN + LABELS, TOP + ROW * len(results)

    def x(value: float) -> float:
        return left + (min(max(value, ends[0]), ends[1]) - ends[0]) / (ends[1] - ends[0]) * BARS

    parts = [_line(x(0), TOP - 6, x(0), bottom + 4, "axis")]
    for tick in _ticks(*ends):
        parts += [_line(x(tick), TOP - 6, x(tick), bottom + 4, "grid")]
        parts += [_text(x(tick), bottom + 20, f"{tick:+.3g}" if tick else "0", "small", "middle")]
    for row, result in enumerate(results):
        y = TOP + ROW * row + ROW / 2
        values = ", ".join(map(shown, result.values.values()))
        is_own = result is found.results[0]
        parts.append(_text(MARGIN, y + 4, f"{result.name}  {values}{' (own)' if is_own else ''}"))
        interval = gains.get(result.name)
        if interval is None or not _is_drawn(result):
            parts.append(_text(left + BARS + 10, y + 4, state_text(result)))
            continue
        kind = _kind(result, found, interval)
        if not is_own and math.isfinite(interval.low):
            parts.append(_line(x(interval.low), y, x(interval.high), y, kind))
        parts.append(f'<circle cx="{x(interval.mean):.1f}" cy="{y:.1f}" r="{RADIUS}" class="{kind}"/>')
        parts.append(_text(left + BARS + 10, y + 4, "0" if is_own else interval_text(interval)))
    names = ", ".join(found.results[0].values)
    return [*parts, _text(MARGIN, bottom + 20, f"probe  {names}", "small")]


def _scatter(
    results: Sequence[Result],
    found: Found,
    gains: dict[str, Interval],
    ends: tuple[float, float],
    name: str,
    part: Range,
    left: int,
    height: int,
) -> list[str]:
    """Draw the gains over the values of a range."""
    points = [one for one in results if one.name in gains and _is_drawn(one)]
    values = [float(one.values[name]) for one in points] or [part.low]
    scale = math.log10 if part.is_log and min(values) > 0 else float
    low, high = scale(min(part.low, *values)), scale(max(part.high, *values))
    right, bottom = left + PANEL - MARGIN, height - BOTTOM

    def place(value: float, gained: float) -> tuple[float, float]:
        across = (scale(value) - low) / ((high - low) or 1.0)
        up = (min(max(gained, ends[0]), ends[1]) - ends[0]) / (ends[1] - ends[0])
        return left + across * (right - left), bottom - up * (bottom - TOP)

    zero = place(values[0], 0.0)[1]
    parts = [_text(left, 38, f"over {name}", "small"), _line(left, zero, right, zero, "axis")]
    for value, anchor in ((min(part.low, *values), "start"), (max(part.high, *values), "end")):
        parts.append(_text(place(value, 0)[0], bottom + 20, f"{value:.3g}", "small", anchor))
    for result in points:
        interval, kind = gains[result.name], _kind(result, found, gains[result.name])
        x, y = place(float(result.values[name]), interval.mean)
        if kind != "own" and math.isfinite(interval.low):
            ys = [place(float(result.values[name]), end)[1] for end in (interval.low, interval.high)]
            parts.append(_line(x, ys[0], x, ys[1], kind))
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{RADIUS}" class="{kind}"/>')
    return parts


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers between two, 0 among them."""
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return [round(number * step, 12) for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    is_class = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{is_class}>{escape(text)}</text>'
