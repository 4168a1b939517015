"""A run as the page sees it, read from its folder as far as it has come."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..diagnose.history import History
from ..diagnose.readers import history_of_events, is_event, read_history
from ..diagnose.rules import judge
from ..errors import DataError
from ..system.run_folder import EVENTS_FILE, SETTINGS_FILE
from .files import foreign_files, read_text, stamp
from .happenings import Happenings
from .pairs import number, read_pairs, text
from .series import GrowingSeries
from .tail import Tail

MOST_BEFORE_START = 200  # events of evaluations of the untrained model
LARGEST_SETTINGS_BYTES = 1_000_000
STALLED_SECONDS = 600.0  # a run that wrote nothing for so long is not called running any more
JUDGED_SHARE = 20.0  # a running run is judged for at most one part in so many of the time
RATE_LINES = 20  # log lines that the speed of the run is taken from
_SETTING = re.compile(r"^([A-Za-z_]\w*): (.*?)(?:  # .*)?$")


class Run:
    """One run, ours or another trainer's; :meth:`refresh` reads what is new.

    Args:
        path: A run folder, or a file that ``oddsmith diagnose`` reads.
    """

    def __init__(self, path: Path):
        self.path = path
        self.id = hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
        self.version = 0  # grows with whatever is new
        self.generation = 0  # grows when what a page has may be wrong
        diary = path / EVENTS_FILE if path.is_dir() else path
        self._tail = Tail(diary) if _is_diary(diary) else None
        self._stamp: tuple[tuple[Path, int, int], ...] | None = None
        self._forget()

    @property
    def name(self) -> str:
        """What the page calls it."""
        return self.path.name if self.path.is_dir() else f"{self.path.parent.name}/{self.path.name}"

    def _forget(self) -> None:
        """A run begins anew in the same place."""
        self.generation += 1
        self.training: dict[str, GrowingSeries] = {}
        self.held_out: dict[str, dict[str, GrowingSeries]] = {}
        self.start: dict[str, Any] = {}
        self.settings: dict[str, Any] = {}
        self.finished = False
        self.steps_are_lines = False
        self._ended_at = 0
        self.skipped = 0
        self.happenings = Happenings()
        self.problem = ""
        self._logged: deque[tuple[int, float]] = deque(maxlen=RATE_LINES)
        self._last_time = 0.0
        self._before_start: list[dict[str, Any]] = []  # an evaluation of the untrained model comes before its start
        self._findings: list[dict[str, Any]] = []
        self._judged_version, self._judge_again = -1, 0.0

    # ---- Reading

    def refresh(self) -> bool:
        """Read what is new.

        Returns:
            Whether there was anything.
        """
        return self._refresh_whole() if self._tail is None else self._refresh_diary(self._tail)

    def _refresh_diary(self, tail: Tail) -> bool:
        if tail.restarted():
            self._forget()
            self.version += 1
        before = self.version
        events: list[dict[str, Any]] = []
        for line in tail.new_lines():
            event = _event_of(line)
            if event is None:
                self.skipped += bool(line.strip())
                continue
            if event["event"] == "start":
                self._take(events)
                events = []
                if event["step"] > 0:
                    self._cut_back(event["step"])
                elif self.training:
                    before_start = self._before_start
                    self._forget()
                    events += before_start
            events.append(event)
        self._take(events)
        return self.version != before

    def _take(self, events: Sequence[dict[str, Any]]) -> None:
        if not events:
            return
        self.version += 1
        self._append(history_of_events(events))
        for event in events:
            self._take_one(event)

    def _cut_back(self, step: int) -> None:
        """A run goes on from a step: what comes after it is done again."""
        for series in (*self.training.values(), *(one for found in self.held_out.values() for one in found.values())):
            self.generation += series.cut_back(step)

    def _take_one(self, event: dict[str, Any]) -> None:
        """What is no series: settings, time, pairs, answers, what went wrong."""
        kind, step = event["event"], event["step"]
        if kind in ("log", "start", "end"):
            self._before_start = []
        elif step == 0 and len(self._before_start) < MOST_BEFORE_START:
            self._before_start.append(event)
        moment = number(event.get("time"))
        self._last_time = self._last_time if moment is None else moment
        if kind == "start":
            self.start = dict(event)
            self._logged.clear()
        if kind in ("start", "end"):
            self.finished, self._ended_at = kind == "end", step
        elif kind == "log" and moment is not None:
            self._logged.append((step, moment))
        self.happenings.take(event)

    def _append(self, history: History) -> None:
        self.settings.update(history.settings)
        replaced = False
        for name, series in history.training.items():
            replaced |= self.training.setdefault(name, GrowingSeries()).append(series, self.version)
        for held_out, found in history.held_out.items():
            kept = self.held_out.setdefault(held_out, {})
            for name, series in found.items():
                replaced |= kept.setdefault(name, GrowingSeries()).append(series, self.version)
        self.generation += replaced

    def _refresh_whole(self) -> bool:
        """Another trainer's files are small or finished: they are read again whenever they change."""
        found = stamp(self.path)
        if found == self._stamp:
            return False
        self._stamp = found
        self._forget()
        self.version += 1
        if any(file.is_symlink() for file in foreign_files(self.path)):
            self.problem = f"{self.path.name} holds links in place of files, which are not followed"
            return True
        try:
            history = read_history(self.path)
        except DataError as error:
            self.problem = str(error)
            return True
        self._append(history)
        self.finished, self.skipped = history.finished, history.skipped
        self.steps_are_lines = history.steps_are_lines
        self._last_time = max((moment for *_, moment in found), default=0) / 1e9
        return True

    # ---- What the page asks for

    @property
    def history(self) -> History:
        """The run as the rules see it."""
        return History(
            source=str(self.path),
            training={name: series.whole for name, series in self.training.items()},
            held_out={key: {name: one.whole for name, one in found.items()} for key, found in self.held_out.items()},
            settings=dict(self.settings),
            skipped=self.skipped,
            finished=self.finished,
            steps_are_lines=self.steps_are_lines,
        )

    def findings(self) -> list[dict[str, Any]]:
        """What the rules of ``oddsmith diagnose`` say of the run as it stands."""
        began = time.monotonic()
        if self._judged_version != self.version and (self.finished or began >= self._judge_again):
            history = self.history
            self._findings = [] if history.is_empty else [finding.to_dict() for finding in judge(history)]
            self._judged_version = self.version
            self._judge_again = began + JUDGED_SHARE * (time.monotonic() - began)
        return self._findings

    def summary(self) -> dict[str, Any]:
        """One line of the list of runs."""
        history = self.history
        return {
            "id": self.id,
            "name": self.name,
            "state": self._state(),
            "problem": self.problem,
            "step": history.last_step,
            "max_steps": history.steps_planned,
            "model": text(self.start.get("model"), 200),
            "updated": self._last_time or None,
            "seconds_left": self._seconds_left(history),
            "beta": history.setting("beta"),
            "skipped": self.skipped,
            "happened": self.happenings.counts,
            "checkpoint": self.happenings.checkpoint,
        }

    def _state(self) -> str:
        if self.problem:
            return "unreadable"
        if self.finished:
            planned = number(self.start.get("max_steps"))
            return "finished" if planned is None or self._ended_at >= planned else "ended early"
        return "running" if time.time() - self._last_time < STALLED_SECONDS else "stopped"

    def _seconds_left(self, history: History) -> float | None:
        if self._state() != "running" or len(self._logged) < 2:
            return None
        (first, began), (last, now) = self._logged[0], self._logged[-1]
        if last <= first or now <= began:
            return None
        return max(0.0, (history.steps_planned - last) * (now - began) / (last - first))

    def series(self, after: int | None, generation: int | None, first: float, last: float) -> dict[str, Any]:
        """The curves, or only what is new to a page.

        Args:
            after: The version that the page has; ``None`` for everything.
            generation: The generation that the page has; of another it gets everything.
            first: From this step on.
            last: Up to this step.

        Returns:
            ``version``, ``generation``, ``complete`` (not only what is new), ``training`` and ``held_out``.
        """
        known = after if generation == self.generation else None
        return {
            "version": self.version,
            "generation": self.generation,
            "complete": known is None,
            "training": _views(self.training, known, first, last),
            "held_out": {name: _views(found, known, first, last) for name, found in self.held_out.items()},
        }

    def details(self) -> dict[str, Any]:
        """Everything that is no curve: findings, settings, pairs, answers, what went wrong."""
        return {
            "findings": self.findings(),
            "settings": self._settings_texts(),
            "reproduce": self._reproduce(),
            "snapshots": self.happenings.snapshots,
            "marks": self.happenings.marks,
            "pairs": read_pairs(self.path) if self.path.is_dir() else [],
            "samples": self.happenings.samples,
        }

    def _settings_texts(self) -> dict[str, str]:
        """Settings as text: of ``run.yaml``, else of the diary."""
        text = read_text(self.path / SETTINGS_FILE, LARGEST_SETTINGS_BYTES) if self.path.is_dir() else ""
        found = {match[1]: match[2].strip().strip('"') for line in text.splitlines() if (match := _SETTING.match(line))}
        if found:
            return found
        given = self.start.get("settings")
        return {
            str(name): value if isinstance(value, str) else json.dumps(value)
            for name, value in {**self.settings, **(given if isinstance(given, dict) else {})}.items()
        }

    def _reproduce(self) -> str:
        has_file = self.path.is_dir() and (self.path / SETTINGS_FILE).is_file()
        return f"oddsmith train {self.path / SETTINGS_FILE} --output-dir ANOTHER_FOLDER" if has_file else ""


def _views(series: Mapping[str, GrowingSeries], after: int | None, first: float, last: float) -> dict[str, Any]:
    views = {name: one.view(after, first, last) for name, one in series.items()}
    return {name: view for name, view in views.items() if view is not None}


def _event_of(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line.decode("utf-8", errors="replace"))
    except (ValueError, RecursionError):
        return None
    return event if is_event(event) and 0 <= event["step"] < 10**12 else None


def _is_diary(path: Path) -> bool:
    """Whether a file is our diary, by its name or its first lines."""
    if path.name == EVENTS_FILE:
        return path.is_file()
    return path.suffix == ".jsonl" and any(
        _event_of(line) is not None for line in read_text(path, 1_000_000).encode().splitlines()[:5]
    )
