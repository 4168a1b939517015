"""Take from the event log of a run what its model card shows: figures, data, settings and curves, as Markdown.

The event log may be a stranger's. All its values are shown as text, and a part that is not as Oddsmith writes it is
left out of the card, with a warning.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ..metrics import BY_NAME, Place, shown_in
from ..system.run_folder import EVENTS_FILE, Event, events_that_count, read_events
from ..system.strict_json import number
from ..system.words import counted
from .card_text import as_text, is_identifier
from .curves import curves_svg

logger = logging.getLogger(__name__)

Events = Sequence[Mapping[str, Any]]

MOST_SETS = 50  # datasets and evaluation sets in a card
MOST_REMARKS = 200
MOST_SETTINGS = 300
# What values of other types and sizes raise where they are formatted.
_ODD = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


@dataclass(frozen=True)
class CardRecord:
    """The parts of a card that come from the event log; empty where it has nothing for them."""

    system_prompt: str | None = None
    held_out: str = ""
    data: str = ""
    training: str = ""
    curves: str | None = None  # text of an SVG picture
    left_out: tuple[str, ...] = ()  # the parts that cannot be made of these events

    @classmethod
    def of(cls, events: Events | CardRecord) -> CardRecord:
        """Return the record of a run's events, as ``read_events`` returns them; a record is returned as it is."""
        if isinstance(events, CardRecord):
            return events
        events = events_that_count(events)
        start: Mapping[str, Any] = next((event for event in reversed(events) if event["event"] == Event.START), {})
        makers: dict[str, Callable[[], str | None]] = {
            "system_prompt": lambda: system_prompt_of(start),
            "held_out": lambda: _held_out(events),
            "data": lambda: _data(start.get("data") or {}),
            "training": lambda: _training(start, events),
            "curves": lambda: curves_svg(events),
        }
        made: dict[str, Any] = {}
        left_out = []
        for part, make in makers.items():
            try:
                made[part] = make()
            except _ODD:
                left_out.append(part.replace("_", " "))
        return cls(**made, left_out=tuple(left_out))

    @classmethod
    def of_run(cls, run: Path) -> CardRecord:
        """Return the record of a run folder; a warning names the parts that its event log has in another form."""
        try:
            record = cls.of(read_events(run))
        except OSError as error:
            logger.warning("%s: cannot be read, so the model card is made without it (%s)", run / EVENTS_FILE, error)
            return cls()
        if record.left_out:
            logger.warning(
                "%s: is not as Oddsmith writes it, so the model card is made without what it says of: %s",
                run / EVENTS_FILE,
                ", ".join(record.left_out),
            )
        return record


def system_prompt_of(start: Mapping[str, Any]) -> str | None:
    """Return the system message that a run gave its rows, from its start event; None where it gave none."""
    settings = start.get("settings")
    prompt = settings.get("system_prompt") if isinstance(settings, dict) else None
    return prompt if isinstance(prompt, str) else None


def _held_out(events: Events) -> str:
    """Return the table of the last evaluation, a column a dataset."""
    columns: dict[str, Mapping[str, Any]] = {}
    for event in events:
        if event["event"] == Event.EVALUATE:
            for key in event:
                if key.endswith("_rewards/accuracies"):
                    columns[key.removesuffix("_rewards/accuracies")] = event
    if not columns:
        return ""
    columns = dict(islice(columns.items(), MOST_SETS))
    titles = [as_text(prefix.removeprefix("eval").removeprefix("_") or "held-out pairs") for prefix in columns]
    lines = ["## Held-out figures", "", f"| | {' | '.join(titles)} |", "|---|" + "---:|" * len(columns)]
    lines.append(f"| after step | {' | '.join(str(event['step']) for event in columns.values())} |")
    for metric in shown_in(Place.CARD):
        values = [number(event.get(f"{prefix}_{metric.name}")) for prefix, event in columns.items()]
        if any(value is not None for value in values):
            cells = ["" if value is None else metric.format.format(value) for value in values]
            lines.append(f"| {metric.label} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"Accuracy: {BY_NAME['rewards/accuracies'].meaning}."])


def _data(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table of rows per dataset: kept, dropped and why, cut and where."""
    if not reports:
        return ""
    lines = ["## Data", "", "| | rows | kept | dropped | cut | longest |", "|---|---:|---:|---:|---:|---:|"]
    remarks = []
    for name, report in islice(reports.items(), MOST_SETS):
        source = as_text(name)
        dropped = {reason: len(rows) for reason, rows in report["dropped"].items()}
        cut = {side: len(rows) for side, rows in report["cut"].items()}
        rows, kept, longest = (_count(report[key]) for key in ("rows", "kept", "longest_tokens"))
        lines.append(
            f"| {source} | {rows:,} | {kept:,} | {sum(dropped.values()):,}"
            f" | {len(set().union(*report['cut'].values())):,} | {counted(longest, 'token')} |"
        )
        remarks += [f"- {source}: {count:,} dropped, {as_text(reason)}" for reason, count in dropped.items()]
        if cut:
            sides = ", ".join(f"{count:,} {as_text(side)}" for side, count in islice(cut.items(), MOST_SETS))
            limit = f" to fit {_count(report['max_length']):,} tokens" if report.get("max_length") else ""
            remarks.append(f"- {source}: cut{limit}: {sides}")
    return "\n".join([*lines, *(["", *remarks[:MOST_REMARKS]] if remarks else [])])


def _training(start: Mapping[str, Any], events: Events) -> str:
    """Return the table of settings that a reader needs to repeat the run."""
    facts: dict[str, Any] = {}
    if start.get("parameters"):
        total, trained = (_count(start[key]) for key in ("parameters", "trainable_parameters"))
        facts["parameters"] = f"{total:,}, {trained:,} of them trained"
    facts |= {name.replace("_", " "): value for name, value in _named(start.get("adapter"))}
    quantization = (start.get("base") or {}).get("quantization")
    if quantization:
        facts["base"] = "4 bits while training" if quantization.get("load_in_4bit") else "8 bits while training"
    if start.get("precision"):
        facts["precision"] = "float32" if start["precision"] == "no" else start["precision"]
    if start.get("pairs_per_step"):
        facts["pairs per step"] = start["pairs_per_step"]
    steps = [event["step"] for event in events if event["event"] in (Event.LOG, Event.END)]
    if steps:
        facts["steps"] = max(steps)
    stopped = [event for event in events if event["event"] == Event.STOPPED_EARLY]
    if stopped and steps and stopped[-1]["step"] == max(steps):
        facts["stopped early"] = stopped[-1].get("reason")
    told = [(name, value) for name, value in _named(start.get("settings")) if name != "system_prompt"]  # in the code
    facts |= {f"`{name}`": value for name, value in told if value is not None and value != -1}
    if not facts:
        return ""
    rows = [f"| {name} | {as_text(value)} |" for name, value in facts.items()]
    return "\n".join(["## How it was trained", "", "| | |", "|---|---|", *rows])


def _named(values: Mapping[str, Any] | None) -> list[tuple[str, Any]]:
    """Return the names and values of settings; anything else in their place is left out."""
    return list(islice(((name, value) for name, value in (values or {}).items() if is_identifier(name)), MOST_SETTINGS))


def _count(value: Any) -> int:
    """Return a number of things; ``TypeError`` for what is none."""
    if type(value) is not int or not 0 <= value < 10**18:
        raise TypeError(f"{value!r:.20} is no number of things")
    return value
