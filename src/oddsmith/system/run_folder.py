"""Name the files of a run folder and the kinds of events, and append to and read the event log. Needs no torch.

    RUN/
      run.yaml                   the resolved settings, secrets masked
      events.jsonl               the event log: one strict JSON object a line, only ever appended to
      checkpoint-STEP/           a checkpoint; manifest.json is written last
      README.md, curves.svg      the model card and its picture
      trainer_state.json         transformers' own state
      report.html                the monitor's page as one file, only if it was asked for
      _console.log               what the command printed, each line with its time
      _held_out_pairs.json       held-out pairs, for the monitor
      _first_evaluation.npz      the first evaluation, which later ones are compared with
      _lock, _lock.json          the lock of the process that trains here, and its process id
      _quarantine/               checkpoints that were set aside
      _stacks/                   where each process stood when one of them hung

Names that begin with ``_`` are not uploaded with a run folder. Every event has ``event`` (an :class:`Event`), ``time``
(seconds since 1970, UTC) and ``step`` (optimizer steps done; of a skipped step its own number).
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import NotAFileError
from .files import dispensable
from .outside import open_file, require_plain_folder
from .strict_json import read_json, strict

SETTINGS_FILE = "run.yaml"
EVENTS_FILE = "events.jsonl"
CARD_FILE, CURVES_FILE = "README.md", "curves.svg"
TRAINER_STATE_FILE = "trainer_state.json"
REPORT_FILE = "report.html"
CONSOLE_FILE = "_console.log"
PAIRS_FILE = "_held_out_pairs.json"
FIRST_EVALUATION_FILE = "_first_evaluation.npz"
LOCK_FILE, LOCK_OWNER_FILE = "_lock", "_lock.json"
QUARANTINE_FOLDER = "_quarantine"
STACKS_FOLDER = "_stacks"
MANIFEST_FILE = "manifest.json"
MAX_STEP = 10**12  # of an event, far beyond any run
MAX_LINE_BYTES = 32 * 2**20  # of the event log; a start event of millions of rows has some of them

# Of the files that a run and libraries write into a run folder.
_SUFFIXES = (
    ".html",
    ".jinja",
    ".json",
    ".jsonl",
    ".log",
    ".md",
    ".model",
    ".npz",
    ".safetensors",
    ".svg",
    ".txt",
    ".yaml",
)


class Event(StrEnum):
    """The kinds of event."""

    START = "start"
    LOG = "log"
    EVALUATE = "evaluate"
    PAIRS = "pairs"
    SAMPLES = "samples"
    RANKS = "ranks"
    FINDING = "finding"
    SKIPPED = "skipped"
    SPIKE = "spike"
    ROLLED_BACK = "rolled_back"
    NOT_FINITE = "not_finite"
    STOPPED_EARLY = "stopped_early"
    CHECKPOINT = "checkpoint"
    END = "end"


class Incident(NamedTuple):
    """The words and the colour in which a kind of incident is shown."""

    one: str  # its name after the number 1
    several: str  # its name after any other number
    sentence: str  # what happened at a step
    tone: str  # "quiet", "watch" or "act", as a verdict of `oddsmith diagnose`


RESUMED = "resumed"  # a start event at a step above 0
INCIDENTS: dict[str, Incident] = {
    RESUMED: Incident("restart", "restarts", "resumed from a checkpoint", "quiet"),
    Event.SKIPPED: Incident("step skipped", "steps skipped", "skipped", "act"),
    Event.SPIKE: Incident("loss spike", "loss spikes", "the loss is far above that of the last steps", "watch"),
    Event.ROLLED_BACK: Incident("rollback", "rollbacks", "rolled back to the last good checkpoint", "act"),
    Event.NOT_FINITE: Incident(
        "evaluation without result",
        "evaluations without result",
        "the evaluation has no result: log-probabilities are NaN or infinite",
        "act",
    ),
    Event.STOPPED_EARLY: Incident("early stop", "early stops", "stopped early", "quiet"),
}


def require_writable_run(folder: Path) -> None:
    """Raise ``NotAFileError`` for links and pipes in a folder that a run writes to, and for folders named as files."""
    require_plain_folder(folder)
    for entry in folder.iterdir() if folder.is_dir() else ():
        if entry.is_dir() and (entry.suffix in _SUFFIXES or entry.name.startswith(LOCK_FILE)):
            raise NotAFileError(entry, "a folder in the place of a file that a run writes; remove or rename it")


def require_plain_run(folder: Path) -> None:
    """Raise ``NotAFileError`` for a link, a pipe, a socket or a device in a run folder or checkpoint of ours.

    Other folders pass. The files of a snapshot in the hub's cache are links to its blobs.
    """
    is_checkpoint = all(os.path.lexists(folder / name) for name in (MANIFEST_FILE, TRAINER_STATE_FILE))
    is_ours = is_checkpoint or any(os.path.lexists(folder / name) for name in (EVENTS_FILE, SETTINGS_FILE))
    if is_ours:
        snapshots = folder.resolve().parent
        require_plain_folder(folder, links_into=snapshots.parent / "blobs" if snapshots.name == "snapshots" else None)


def append_event(folder: str | Path, event: Event, step: int, **fields: Any) -> None:
    """Append an event to the event log of a run folder; NaN and infinity in its fields become ``null``.

    A log that cannot be written does not end the run: a warning says that it has a gap.
    """
    line = json.dumps(strict({"event": event, "time": time.time(), "step": step, **fields}), allow_nan=False)
    file = Path(folder) / EVENTS_FILE
    with dispensable(file, "the run goes on, and its event log has a gap"):
        _append_line(file, line)


def _append_line(file: Path, line: str) -> None:
    """Append a line, after a line break where a full disk or a power cut left the last line incomplete."""
    with open_file(file, "ab+", follow=False, buffering=0) as opened:
        end = opened.seek(0, os.SEEK_END)
        opened.seek(max(0, end - 1))
        is_cut = opened.read(1) not in (b"", b"\n")
        data = b"\n" * is_cut + line.encode() + b"\n"
        while data:  # a disk that becomes full writes a part, and raises the error at the next write
            data = data[opened.write(data) :]


def is_event(value: Any) -> bool:
    """Return whether a JSON value is a line of the event log."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("event"), str)
        and type(step := value.get("step")) is int
        and 0 <= step <= MAX_STEP
    )


def read_events(folder: str | Path) -> list[dict[str, Any]]:
    """Read the events of a run folder in order; incomplete lines, as after a power cut, and strange ones are left out.

    The values of an event may be of any type: the run may be a stranger's.
    """
    file = Path(folder) / EVENTS_FILE
    if not os.path.lexists(file):
        return []
    events = []
    with open_file(file, follow=False) as opened:
        while line := opened.readline(MAX_LINE_BYTES):
            try:
                event = read_json(line.decode(errors="replace"))
            except ValueError:
                continue
            if is_event(event):
                events.append(event)
    return events


def events_that_count(events: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the events without those of steps that a later start undid: it went on from an earlier step, or anew."""
    kept: list[Mapping[str, Any]] = []
    restarted_at = math.inf  # the lowest step of the starts after an event
    for event in reversed(events):
        if event["step"] <= restarted_at:
            kept.append(event)
        if event["event"] == Event.START:
            restarted_at = min(restarted_at, event["step"])
    return kept[::-1]
