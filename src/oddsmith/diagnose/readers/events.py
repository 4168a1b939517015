"""Reader of our own diary, ``events.jsonl``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..history import History, HistoryBuilder
from .lines import lines_of

# Settings that rules use, from the start event itself or from its "settings".
USED = ("beta", "learning_rate", "max_steps", "warmup_steps", "parameters", "trainable_parameters", "adapter")


def is_event(line: Any) -> bool:
    """Whether an object is a line of the diary."""
    return isinstance(line, dict) and isinstance(line.get("event"), str) and isinstance(line.get("step"), int)


def read_diary(path: Path) -> History:
    """The history that a diary holds; broken lines are passed over and counted.

    Args:
        path: The file.

    Returns:
        The history; empty where no line was readable.
    """
    events, skipped = [], 0
    for line in lines_of(path):
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            event = None
        if is_event(event):
            events.append(event)
        else:
            skipped += 1
    history = history_of_events(events, str(path))
    history.skipped = skipped
    return history


def history_of_events(events: Iterable[Mapping[str, Any]], source: str = "") -> History:
    """The history that events hold. ``null`` stands for a number that was not finite.

    Args:
        events: Lines of the diary, in order.
        source: Where they are from.

    Returns:
        The history.
    """
    diary = DiaryHistory(source)
    for event in events:
        diary.add(event)
    return diary.build()


class DiaryHistory:
    """A history that grows with its diary.

    Args:
        source: Where the events are from.
    """

    def __init__(self, source: str = ""):
        self._builder = HistoryBuilder(source)
        self._builder.history.finished = False

    def add(self, event: Mapping[str, Any]) -> None:
        """Add one event.

        Args:
            event: A line of the diary.
        """
        kind, step = event["event"], event["step"]
        if kind == "start":
            if step == 0:
                self._builder.forget()
            else:
                self._builder.cut_back(step)
            self._builder.history.finished = False
            given = event.get("settings")
            told = {**(given if isinstance(given, dict) else {}), **event}
            self._builder.history.settings.update({name: told[name] for name in USED if name in told})
        elif kind in ("log", "evaluate"):
            self._builder.add(step, event, null_is_nan=True)
        elif kind == "end":
            self._builder.history.finished = True

    def build(self) -> History:
        """The history so far."""
        return self._builder.build()
