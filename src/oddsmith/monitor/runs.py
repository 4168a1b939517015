"""Find the runs that the page shows, and look for new ones."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..system.run_folder import EVENTS_FILE, TRAINER_STATE_FILE
from .notes import Note, Notes
from .run import Run
from .table import row_of

MAX_RUNS = 500  # of a folder of runs, the latest
REFRESH_SECONDS = 0.5
READING_SECONDS = 0.3  # after which a long event log waits for the next refresh, so that requests are answered


class Runs:
    """The runs at some paths (run folders, files, folders of run folders), by their id. Safe to use from threads.

    Nothing is read before the first call.

    ``DataError`` if a path does not exist.
    """

    def __init__(self, paths: Sequence[Path]):
        for path in paths:
            if not path.exists():
                raise DataError(f"{path} is not there; expected a run folder, or a folder of them")
        self._paths = [path.resolve() for path in paths]
        self._runs: dict[str, Run] = {}
        self._notes: dict[Path, Notes] = {}  # by the folder that the runs are in
        self._lock = threading.Lock()
        self._next = 0.0
        self.version = 0
        self.is_reading = False  # there is more than the last refresh has read

    def refresh(self) -> int:
        """Read what is new, at most every ``REFRESH_SECONDS``; return a version, which grows with anything new.

        It returns soon: where there is much to read, :attr:`is_reading` says that the next call goes on.
        """
        with self._lock:
            if time.monotonic() >= self._next:
                known = {run.path: run for run in self._runs.values()}
                places = [place for path in self._paths for place in find_runs(path)]
                runs = [known.get(place) or Run(place) for place in dict.fromkeys(places)]
                found = {run.id: run for run in runs}
                changed = found.keys() != self._runs.keys()
                self._runs = found
                until = time.monotonic() + READING_SECONDS
                for run in runs:
                    changed |= run.refresh(until)
                changed |= self._read_notes(runs)
                self.version += changed
                self.is_reading = any(run.is_reading for run in runs)
                self._next = time.monotonic() + (0.0 if self.is_reading else REFRESH_SECONDS)
            return self.version

    def _read_notes(self, runs: Sequence[Run]) -> bool:
        """Give each run its note; return whether any has changed."""
        folders = {noted(run.path).parent for run in runs}
        self._notes = {folder: self._notes.get(folder) or Notes(folder) for folder in folders}
        changed = [notes.refresh() for notes in self._notes.values()]
        before = [run.note for run in runs]
        for run in runs:
            run.note = self._notes[noted(run.path).parent].of(noted(run.path))
        return any(changed) and before != [run.note for run in runs]

    def write_note(self, run: str, note: Note) -> bool:
        """Keep what a person wrote of a run; return whether there is such a run. ``OSError`` where it is not kept."""
        with self._lock:
            if run not in self._runs:
                return False
            path = noted(self._runs[run].path)
            self._notes[path.parent].write(path, note)
            self._next = 0.0
        self.refresh()
        return True

    def table(self) -> list[dict[str, Any]]:
        """Return a row of the table of runs for each run; other requests are answered between them."""
        self.refresh()
        rows = []
        for run in list(self._runs.values()):
            with self._lock:
                rows.append(row_of(run))
        return rows

    def console(self, run: str) -> str | None:
        """Return the end of what a run printed; ``None`` if there is no such run."""
        with self._lock:
            return self._runs[run].console() if run in self._runs else None

    def all(self) -> list[Run]:
        """Read everything, and return the runs, the latest last; for use by one thread."""
        self.refresh()
        while self.is_reading:
            self.refresh()
        return sorted(self._runs.values(), key=lambda run: run.summary()["updated"] or 0.0)

    def summaries(self) -> list[dict[str, Any]]:
        """Return :meth:`Run.summary` of each run, the latest first."""
        self.refresh()
        with self._lock:
            found = [run.summary() for run in self._runs.values()]
        return sorted(found, key=lambda one: -(one["updated"] or 0.0))

    def series(self, run: str, *args: Any) -> dict[str, Any] | None:
        """Return :meth:`Run.series` of the run with an id; ``None`` if there is none."""
        self.refresh()
        with self._lock:
            return self._runs[run].series(*args) if run in self._runs else None

    def details(self, run: str) -> dict[str, Any] | None:
        """Return :meth:`Run.details` of the run with an id; ``None`` if there is none."""
        self.refresh()
        with self._lock:
            return self._runs[run].details() if run in self._runs else None


def find_runs(path: Path) -> list[Path]:
    """Return the path itself if it is a run or a file, else the run folders in it; no links are followed."""
    if path.is_file() or _is_run(path):
        return [path]
    try:
        with os.scandir(path) as entries:
            folders = [Path(one.path) for one in entries if one.is_dir(follow_symlinks=False)]
    except OSError:
        return []
    runs = [folder for folder in folders if _is_run(folder)]
    return sorted(runs, key=_changed, reverse=True)[:MAX_RUNS]


def noted(path: Path) -> Path:
    """Return what the notes of a run are kept for: of a file or a checkpoint in a run folder, the run folder."""
    while (path.is_file() or path.name.startswith("checkpoint-")) and _is_run(path.parent):
        path = path.parent
    return path


def _changed(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0


def _is_run(folder: Path) -> bool:
    files = (folder / EVENTS_FILE, folder / TRAINER_STATE_FILE)
    if any(file.is_file() and not file.is_symlink() for file in files):
        return True
    return any(not file.is_symlink() for file in folder.glob(f"checkpoint-*/{TRAINER_STATE_FILE}"))
