"""Read one run from its folder, as far as it has come, and describe it for the page."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..diagnose.history import EMPTY, EPOCH, History, Series
from ..diagnose.readers import history_of_events, read_history
from ..diagnose.rules import judge
from ..errors import DataError
from ..system.run_folder import CONSOLE_FILE, EVENTS_FILE, SETTINGS_FILE, Event, is_event
from ..system.strict_json import read_json
from ..system.time_left import PaceOfRun
from .events import RunEvents, mark_cut_answers, number, read_pairs, text
from .files import Tail, foreign_files, open_plain, read_bytes, stamps
from .notes import Note
from .series import MAX_POINTS, GrowingSeries

MAX_BEFORE_START = 200  # events of evaluations of the untrained model
MAX_SETTINGS_BYTES = 1_000_000
MAX_CONSOLE_BYTES = 200_000
STALLED_SECONDS = 600.0  # a run that wrote nothing for so long is not called running any more
JUDGED_SHARE = 20.0  # while a run goes on, the rules take at most one part in so many of the time
BATCH_EVENTS = 2000  # that are in memory at once
ELAPSED, TOKENS = "elapsed_s", "num_tokens"
_SETTING = re.compile(r"^([A-Za-z_]\w*): (.*?)(?:  # .*)?$")


class Run:
    """One run, ours or another trainer's, in a run folder or a file; :meth:`refresh` reads what is new."""

    def __init__(self, path: Path):
        self.path = path
        self.id = hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
        self.version = 0  # grows with everything new
        self.generation = 0  # grows when points that a page may already show have changed
        self.is_reading = False  # there is more in the event log than was read
        log = path / EVENTS_FILE if path.is_dir() else path
        self._tail = Tail(log) if _is_event_log(log) else None
        self._stamps: tuple[tuple[Path, int, int], ...] | None = None
        self._settings_stamps: tuple[tuple[Path, int, int], ...] = ()
        self._file_settings: dict[str, str] = {}
        self.note = Note()  # what a person wrote of it
        self._forget()

    @property
    def name(self) -> str:
        """Return the name on the page; what is no UTF-8 in it is replaced."""
        return text(self.path.name if self.path.is_dir() else f"{self.path.parent.name}/{self.path.name}")

    def _forget(self) -> None:
        """Reset everything, because another run begins in the same place."""
        self.generation += 1
        self.training: dict[str, GrowingSeries] = {}
        self.held_out: dict[str, dict[str, GrowingSeries]] = {}
        self.axes: dict[str, GrowingSeries] = {}  # what steps can be looked up in beside epoch and tokens: elapsed_s
        self.start: dict[str, Any] = {}
        self.settings: dict[str, Any] = {}
        self.finished, self.skipped = False, 0
        self._read = History(str(self.path), finished=False)  # what the last reading says beside the curves
        self.events = RunEvents()
        self.problem = ""
        self._ended_at = 0
        self._stopped_early_at: int | None = None
        self._pace: PaceOfRun | None = None
        self._began: float | None = None  # the time of the last start
        self._elapsed_before_s = 0.0
        self._seconds_left: float | None = None  # at the last log line, as the terminal shows it there
        self._last_time = 0.0
        self._before_start: list[dict[str, Any]] = []  # the evaluation of the untrained model precedes the start
        self._findings: list[dict[str, Any]] = []
        self._judged_version, self._judge_again = -1, 0.0

    # ---- Reading

    def refresh(self, until: float = math.inf) -> bool:
        """Read what is new, and return whether there was anything.

        Of a long event log only a part is read once the monotonic clock has passed ``until``; ``is_reading`` then says
        that there is more.
        """
        return self._refresh_foreign() if self._tail is None else self._refresh_event_log(self._tail, until)

    def _refresh_event_log(self, tail: Tail, until: float) -> bool:
        if tail.restarted():
            self._forget()
            self.version += 1
        before, self.is_reading = self.version, False
        events: list[dict[str, Any]] = []
        for line in tail.new_lines():
            if len(events) >= BATCH_EVENTS:
                self._add(events)
                events = []
                self.is_reading = time.monotonic() > until
            event = _event_of(line)
            if event is None:
                self.skipped += bool(line.strip())
            else:
                if event["event"] == Event.START:
                    self._add(events)
                    events = self._begin(event)
                events.append(event)
            if self.is_reading:
                break
        self._add(events)
        return self.version != before

    def _begin(self, start: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Drop what a start undoes; return the events before it that belong to the new run."""
        if start["step"] > 0:
            self._cut_back(start["step"])
        elif self.training:
            before_start = self._before_start
            self._forget()
            return before_start
        return []

    def _add(self, events: Sequence[dict[str, Any]]) -> None:
        if not events:
            return
        self.version += 1
        self._append(history_of_events(events))
        elapsed: dict[int, float] = {}
        for event in events:
            self._note(event)
            if event["event"] == Event.LOG and self._began is not None and self._last_time >= self._began:
                elapsed[event["step"]] = self._elapsed_before_s + self._last_time - self._began
        if elapsed:
            steps = sorted(elapsed)
            added = Series(np.array(steps, dtype=float), np.array([elapsed[step] for step in steps]))
            self.generation += self.axes.setdefault(ELAPSED, GrowingSeries()).append(added, self.version)

    def _note(self, event: dict[str, Any]) -> None:
        """Record from an event everything but the curves."""
        kind, step = event["event"], event["step"]
        if kind in (Event.LOG, Event.START, Event.END):
            self._before_start = []
        elif step == 0 and len(self._before_start) < MAX_BEFORE_START:
            self._before_start.append(event)
        moment = number(event.get("time"))
        self._last_time = self._last_time if moment is None else moment
        if kind == Event.START:
            self.start = dict(event)
            planned = number(event.get("max_steps"))
            self._pace = None if planned is None or moment is None else PaceOfRun(int(planned), step, moment)
            self._seconds_left = None
            self._began, self._elapsed_before_s = moment, self._elapsed_at(step)
        if kind in (Event.START, Event.END):
            self.finished, self._ended_at = kind == Event.END, step
        elif kind == Event.STOPPED_EARLY:
            self._stopped_early_at = step
        elif kind == Event.EVALUATE and self._pace is not None:
            self._pace.add_evaluation(event)
        elif kind == Event.LOG and moment is not None and self._pace is not None:
            self._seconds_left = number(self._pace.seconds_left(step, moment))
        self.events.add(event)

    def _elapsed_at(self, step: int) -> float:
        """Return the seconds of training up to a step, without those between an interruption and its resume."""
        known = self.axes[ELAPSED].points.until(step) if ELAPSED in self.axes else EMPTY
        return float(known.values[-1]) if len(known) else 0.0

    def _cut_back(self, step: int) -> None:
        """Drop the points after a step, because a resumed run repeats it."""
        for group in (self.training, self.axes, *self.held_out.values()):
            for series in group.values():
                self.generation += series.cut_back(step)

    def _append(self, history: History) -> None:
        self.settings.update(history.settings)
        groups = [(self.training, history.training)]
        groups += [(self.held_out.setdefault(name, {}), metrics) for name, metrics in history.held_out.items()]
        replaced = False
        for known, added in groups:
            for name, series in added.items():
                replaced |= known.setdefault(name, GrowingSeries()).append(series, self.version)
        self.generation += replaced

    def _refresh_foreign(self) -> bool:
        """Read another trainer's files, which are small or finished, from their start whenever one changes."""
        files = foreign_files(self.path)
        found = stamps(files)
        if found == self._stamps:
            return False
        self._stamps = found
        self._forget()
        self.version += 1
        if any(file.is_symlink() for file in files):
            self.problem = f"{self.path.name} holds links in place of files, which are not followed"
            return True
        try:
            history = read_history(self.path)
        except DataError as error:
            self.problem = str(error)
            return True
        self._append(history)
        self.finished, self.skipped = history.finished, history.skipped
        self._read = history
        self._last_time = max((moment for *_, moment in found), default=0) / 1e9
        return True

    # ---- What the page asks for

    @property
    def history(self) -> History:
        """Return the history that the rules judge."""
        return self._history_of(lambda series: series.fair)

    def _history_of(self, points: Callable[[GrowingSeries], Series]) -> History:
        return replace(
            self._read,
            training={name: points(series) for name, series in self.training.items()},
            held_out={key: {name: points(one) for name, one in group.items()} for key, group in self.held_out.items()},
            settings=dict(self.settings),
            skipped=self.skipped,
            finished=self.finished,
        )

    def findings(self) -> list[dict[str, Any]]:
        """Return the findings of ``oddsmith diagnose`` so far; while the run goes on they may be a little old."""
        if self.is_reading:
            return []
        began = time.monotonic()
        if self._judged_version != self.version and (self.finished or began >= self._judge_again):
            history = self.history
            self._findings = [] if history.is_empty else [finding.to_dict() for finding in judge(history)]
            self._judged_version = self.version
            self._judge_again = began + JUDGED_SHARE * (time.monotonic() - began)
        return self._findings

    def summary(self) -> dict[str, Any]:
        """Return one entry of the list of runs."""
        history = self._history_of(lambda series: series.points)
        return {
            "id": self.id,
            "version": self.version,
            "name": self.name,
            "title": self.note.name or self.name,
            "note": self.note.note,
            "state": self._state(),
            "problem": self.problem,
            "step": history.last_step,
            "max_steps": history.steps_planned,
            "unit": history.unit,
            "model": text(self.start.get("model"), 200),
            "updated": self._last_time or None,
            "seconds_left": self._seconds_left if self._state() == "running" else None,
            "beta": history.setting("beta"),
            "skipped": self.skipped,
            "happened": self.events.counts,
            "checkpoint": self.events.checkpoint,
            "waiting": self.events.waiting(),
        }

    def _state(self) -> str:
        if self.problem:
            return "unreadable"
        if self.is_reading:
            return "reading"
        if self.finished:
            planned = number(self.start.get("max_steps"))
            is_whole = planned is None or self._ended_at >= planned or self._ended_at == self._stopped_early_at
            return "finished" if is_whole else "ended early"
        return "running" if time.time() - self._last_time < STALLED_SECONDS else "stopped"

    def series(
        self, after: int | None, generation: int | None, first: float, last: float, points: int = MAX_POINTS
    ) -> dict[str, Any]:
        """Return the curves from step ``first`` to ``last``, or only the points that are new since version ``after``.

        Of each curve at most ``points`` are returned. A page with an old ``generation`` gets everything, and then
        ``complete`` is true.
        """
        known = after if generation == self.generation else None
        return {
            "version": self.version,
            "generation": self.generation,
            "complete": known is None,
            "training": _views(self.training, known, first, last, points),
            "axes": _views(self._all_axes(), known, -math.inf, math.inf, points),
            "held_out": {name: _views(group, known, first, last, points) for name, group in self.held_out.items()},
        }

    def console(self) -> str:
        """Return the end of what the run printed, at most ``MAX_CONSOLE_BYTES``; empty where it kept nothing."""
        file = open_plain(self.path / CONSOLE_FILE) if self.path.is_dir() else None
        if file is None:
            return ""
        with file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - MAX_CONSOLE_BYTES))
            found = file.read(MAX_CONSOLE_BYTES)
        if size > MAX_CONSOLE_BYTES:
            found = found.partition(b"\n")[2] or found  # unless it is all one line
        return text(found.decode("utf-8", errors="replace"), MAX_CONSOLE_BYTES)

    def _all_axes(self) -> dict[str, GrowingSeries]:
        """Return the curves that say where a step lies: by time, by epoch and by tokens."""
        logged = {name: self.training[name] for name in (EPOCH, TOKENS) if name in self.training}
        return {**self.axes, **logged}

    def details(self) -> dict[str, Any]:
        """Return everything but the curves: findings, settings, pairs, answers, incidents."""
        settings_file = self.path / SETTINGS_FILE
        history = self._history_of(lambda series: series.points)
        pairs = read_pairs(self.path) if self.path.is_dir() else []
        mark_cut_answers(pairs, self.start.get("data"))
        has_settings = self.path.is_dir() and settings_file.is_file()
        return {
            "findings": self.findings(),
            "seen": {"log_lines": history.log_lines, "evaluations": history.evaluations},
            "settings": self.settings_texts(),
            "reproduce": f"oddsmith train {shlex.quote(str(settings_file))} --output-dir ANOTHER_FOLDER"
            if has_settings
            else "",
            "snapshots": self.events.snapshots,
            "marks": self.events.marks,
            "pairs": pairs,
            "samples": self.events.samples,
            "ranks": self.events.ranks,
            "has_console": bool(stamps([self.path / CONSOLE_FILE])) if self.path.is_dir() else False,
        }

    def settings_texts(self) -> dict[str, str]:
        """Return the settings as text: from ``run.yaml``, which is read when it has changed, else from the log."""
        found = stamps([self.path / SETTINGS_FILE]) if self.path.is_dir() else ()
        if found != self._settings_stamps:
            content = read_bytes(self.path / SETTINGS_FILE, MAX_SETTINGS_BYTES) if found else b""
            lines = content.decode("utf-8", errors="replace").splitlines()
            matches = filter(None, map(_SETTING.match, lines))
            self._file_settings = {match[1]: match[2].strip().strip('"') for match in matches}
            self._settings_stamps = found
        if self._file_settings:
            return self._file_settings
        given = self.start.get("settings")
        settings = {**self.settings, **(given if isinstance(given, dict) else {})}
        return {str(name): one if isinstance(one, str) else json.dumps(one) for name, one in settings.items()}


def _views(
    group: Mapping[str, GrowingSeries], after: int | None, first: float, last: float, points: int
) -> dict[str, Any]:
    views = {name: series.view(after, first, last, points) for name, series in group.items()}
    return {name: view for name, view in views.items() if view is not None}


def _event_of(line: bytes) -> dict[str, Any] | None:
    try:
        event = read_json(line.decode("utf-8", errors="replace"))
    except ValueError:
        return None
    return event if is_event(event) else None


def _is_event_log(path: Path) -> bool:
    """Return whether a file is our event log, by its name or its first lines."""
    if path.name == EVENTS_FILE:
        return path.is_file()
    if path.suffix != ".jsonl":
        return False
    return any(_event_of(line) is not None for line in read_bytes(path, 1_000_000).splitlines()[:5])
