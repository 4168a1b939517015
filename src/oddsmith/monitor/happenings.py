"""What a diary tells beside its curves: margins of the held-out pairs, answers, checkpoints, and what went wrong."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

from ..system.run_folder import INCIDENTS, RESUMED, Event
from .pairs import clean_samples, clean_snapshot, number, text

MOST_SNAPSHOTS = 400  # evaluations whose pairs are kept; beyond, every second one is dropped
MOST_SETS = 50  # evaluation sets whose answers are kept
MOST_MARKS = 100  # the last ones; all are counted
MOST_ROWS = 8  # that a mark names


class Happenings:
    """Collects them event by event. Steps that are done again after an interruption are told again, and count once."""

    def __init__(self) -> None:
        self.snapshots: list[dict[str, Any]] = []
        self._answers: dict[str, list[dict[str, Any]]] = {}  # set -> those of the first time, and of the last
        self._marks: deque[dict[str, Any]] = deque(maxlen=MOST_MARKS)
        self._counts: Counter[str] = Counter()
        self.checkpoint: int | None = None  # the step of the last one

    def take(self, event: dict[str, Any]) -> None:
        """Take an event of the diary; most are none of these.

        Args:
            event: With ``event`` and a ``step`` that is a whole number.
        """
        kind, step = event["event"], event["step"]
        if kind == "start" and step > 0:
            self._cut_back(step)
            self._mark(RESUMED, step, INCIDENTS[RESUMED].sentence)
        elif kind == "checkpoint":
            self.checkpoint = step
        elif kind in INCIDENTS:
            self._mark(kind, step, _told(event))
        elif kind == "pairs" and (snapshot := clean_snapshot(event)) is not None:
            self.snapshots.append(snapshot)
            if len(self.snapshots) > MOST_SNAPSHOTS:
                del self.snapshots[1:-1:2]
        elif kind == "samples":
            answers = clean_samples(event)
            if answers["set"] in self._answers or len(self._answers) < MOST_SETS:
                self._answers[answers["set"]] = [*self._answers.get(answers["set"], [])[:1], answers]

    def _mark(self, kind: str, step: int, words: str) -> None:
        self._marks.append({"kind": kind, "step": step, "text": words})
        self._counts[kind] += 1

    def _cut_back(self, step: int) -> None:
        """What came after a step belongs to steps that are done again."""
        self.checkpoint = step  # what it went on from
        self.snapshots = [one for one in self.snapshots if one["step"] <= step]
        kept = {name: [one for one in found if one["step"] <= step] for name, found in self._answers.items()}
        self._answers = {name: found for name, found in kept.items() if found}
        undone = [mark for mark in self._marks if mark["kind"] != RESUMED and mark["step"] > step]
        self._counts.subtract(mark["kind"] for mark in undone)
        self._marks = deque((mark for mark in self._marks if mark not in undone), maxlen=MOST_MARKS)

    @property
    def marks(self) -> list[dict[str, Any]]:
        """The last of what went wrong: ``kind``, ``step`` and ``text``."""
        return list(self._marks)

    @property
    def counts(self) -> dict[str, int]:
        """How often each kind of it was told."""
        return {kind: count for kind, count in self._counts.items() if count > 0}

    @property
    def samples(self) -> list[dict[str, Any]]:
        """Answers of the first time and of the last, a set each."""
        return [{"set": name, "first": found[0], "last": found[-1]} for name, found in self._answers.items()]


def _told(event: dict[str, Any]) -> str:
    """A mark in words: what, why, and the rows behind it."""
    words = [INCIDENTS[event["event"]].sentence]
    cause, loss, checkpoint = (
        text(event.get("cause"), 100),
        number(event.get("loss")),
        text(event.get("checkpoint"), 100),
    )
    if event["event"] == Event.SKIPPED and cause:
        words.append(f": {cause} {'of the loss' if cause == Event.SPIKE else 'not finite'}")
    if event["event"] == Event.SPIKE and loss is not None:
        words.append(f" ({loss:.4g})")
    if checkpoint:
        words.append(f", {checkpoint}")
    found = event.get("rows")
    rows = (
        [int(row) for one in found[:MOST_ROWS] if (row := number(one)) is not None] if isinstance(found, list) else []
    )
    if rows:
        more = (number(event.get("num_rows")) or 0) - len(rows)
        words.append(f"; rows {', '.join(map(str, rows))}{f' and {more:.0f} more' if more > 0 else ''}")
    return "".join(words)
