"""Name a process that hangs, with where it stands, and end the run; the others would wait for it for half an hour.

Each process tells the others its place (``pace.py``) through the store at which the processes of a run have met. The
first one compares: where a process stays behind the others for ``HANG_SHARE`` of ``ddp_timeout``, in a place that takes
no process long, it is named, all processes write their stacks into the run folder, and all end with exit code 1, so
that a launcher can start them again. Waiting in an evaluation's end, a save, a compilation or the preparation of the
first step ends nothing. Where the first process itself does not answer, the next one takes its part.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import psutil
import torch
from torch import distributed

from ..system.files import dispensable
from ..system.launchers import store_of_run
from ..system.run_folder import STACKS_FOLDER
from ..system.strict_json import read_json, read_object
from .pace import Pace, Place

logger = logging.getLogger(__name__)

HANG_SHARE = 1 / 3  # of ddp_timeout: a process is named long before torch gives up: after 10 minutes of 30
POLLS = 20  # looks at the others in that time
MAX_POLL_S = 15.0
ANSWER_S = 5.0  # for processes to say where they stand
MAX_NAMED = 4  # ranks in the message
HANG_EXIT_CODE = 1


class Report(NamedTuple):
    """What a process tells the others."""

    beats: int  # grows while the process runs at all
    place: Place
    host: str
    process: int

    @classmethod
    def parse(cls, text: bytes) -> Report:
        """Read a report from its JSON form."""
        beats, place, host, process = read_json(text.decode())
        return cls(beats, Place(*place), host, process)


class Found(NamedTuple):
    """The processes that stand still."""

    ranks: tuple[int, ...]
    silent: frozenset[int]  # those that do not even report
    is_certain: bool  # whether these are to blame, and not another one in the same place


class Standstill:
    """Find the processes that hang, from what all of them report.

    Args:
        timeout_s: For how long a process has to stand still.
        clock: Returns seconds.
    """

    def __init__(self, timeout_s: float, clock: Callable[[], float]):
        self._timeout_s, self._clock = timeout_s, clock
        self._moved: dict[int, tuple[Any, float]] = {}  # rank -> place, and when it was first seen there
        self._beaten: dict[int, tuple[Any, float]] = {}

    def find(self, reports: Mapping[int, Report]) -> Found | None:
        """Return the processes that hang; ``None`` if there are none.

        It is one that is behind others and has not moved for ``timeout_s`` from a place where no process stays long; or
        one that does not report, if it or all others have not. If all stand in the same place and report, all are
        returned.
        """
        now = self._clock()
        for rank, report in reports.items():
            for seen, value in ((self._moved, report.place), (self._beaten, report.beats)):
                if rank not in seen or seen[rank][0] != value:
                    seen[rank] = (value, now)
        stands = {
            rank
            for rank, report in reports.items()
            if report.place.is_limited and now - self._moved[rank][1] >= self._timeout_s
        }
        silent = frozenset(rank for rank in reports if now - self._beaten[rank][1] >= self._timeout_s / 2)
        if not reports.keys() - silent <= stands:  # what it reported last may be older than where it is
            silent &= stands
        behind = min(report.place[:2] for report in reports.values())
        late = {rank for rank, report in reports.items() if report.place[:2] == behind}
        if late == reports.keys() and not silent:
            return Found(tuple(sorted(late)), silent, is_certain=False) if stands == late else None
        blamed = silent or (late & stands)
        return Found(tuple(sorted(blamed)), silent, is_certain=True) if blamed else None


class HangWatch:
    """Watch the processes of a training in the block, in a thread of each; nothing where there is one process.

    Args:
        pace: Says where this process is.
        tell: Prints a line.
    """

    def __init__(self, pace: Pace, tell: Callable[[str], None] = logger.error):
        self._pace, self._tell = pace, tell
        self._trainings = 0
        self._ended = threading.Event()

    @contextmanager
    def watching(self, folder: Path, timeout_s: float) -> Iterator[None]:
        """Watch in the block, which all processes enter together.

        Args:
            folder: The run folder.
            timeout_s: After so many seconds a process hangs.
        """
        self._trainings += 1
        if not distributed.is_initialized() or distributed.get_world_size() == 1:
            yield
            return
        self._stacks, self._timeout_s = folder / STACKS_FOLDER, timeout_s
        self._poll_s = min(timeout_s / POLLS, MAX_POLL_S)
        self._rank, self._world = distributed.get_rank(), distributed.get_world_size()
        self._main = threading.current_thread().ident or 0
        self._ended.clear()
        self._store = distributed.PrefixStore(f"oddsmith/hang/{self._trainings}", store_of_run())
        self._beats = 0
        threads = [threading.Thread(target=target, daemon=True) for target in (self._watch, self._watch_store)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._ended.set()
            for thread in threads:
                thread.join(ANSWER_S)

    # ---- The thread

    def _watch(self) -> None:
        questions, told = 0, None
        # Its time is that of these rounds: a process that was suspended does not think that the others were, too.
        standstill = Standstill(self._timeout_s, clock=lambda: self._beats * self._poll_s)
        with suppress(RuntimeError):  # the store is gone, and so is the run
            while not self._ended.wait(self._poll_s):
                self._beats += 1
                mine = Report(self._beats, self._visible_place(), socket.gethostname(), os.getpid())
                self._store.set(f"at/{self._rank}", json.dumps(mine))
                if self._store.check([f"question/{questions}"]):
                    self._answer(questions)
                    questions += 1
                reports = self._reports(range(self._world) if self._rank == 0 else (0, self._rank))
                found = standstill.find(reports) if reports else None
                if found is None or (self._rank != 0 and 0 not in found.silent):
                    continue  # all is well, or the first process will say what is not
                if found.is_certain or told != self._pace.place:
                    told = self._pace.place
                    self._ask(questions, found)

    def _watch_store(self) -> None:
        """End this process if the store does not answer: the first process serves it, where no launcher does."""
        stood_s, seen = 0.0, None
        while not self._ended.wait(self._poll_s):
            now = self._beats, self._visible_place()
            stood_s, seen = stood_s + self._poll_s if now == seen else 0.0, now
            if stood_s > self._timeout_s and now[1].is_limited:
                if self._rank == 1:
                    self._tell(
                        f"for {self._timeout_s:.0f} s rank 0 of {self._world} does not answer and the others wait: its"
                        " process was stopped, or its machine is gone; the run ends, and can go on from its last"
                        " checkpoint"
                    )
                self._write_stacks()
                _end_now()

    def _visible_place(self) -> Place:
        place = self._pace.place
        return place._replace(doing="compiling", is_limited=False) if _is_compiling() else place

    def _reports(self, ranks: Sequence[int]) -> dict[int, Report]:
        """Return what these processes have reported; nothing until all have."""
        keys = [f"at/{rank}" for rank in ranks]
        if not self._store.check(keys):
            return {}
        return {rank: Report.parse(text) for rank, text in zip(ranks, self._store.multi_get(keys), strict=True)}

    def _ask(self, question: int, found: Found) -> None:
        """Let all processes write their stacks, say what was found, and end the run if it is certain."""
        if self._store.add(f"asking/{question}", 1) > 1:  # another process does
            return
        self._store.set(f"question/{question}", "end" if found.is_certain else "go on")
        self._answer(question, ends=False)
        ranks = [rank for rank in found.ranks if rank not in found.silent]
        with suppress(RuntimeError):  # not all have answered in time
            for rank in ranks:
                self._store.wait([f"stands/{question}/{rank}"], timedelta(seconds=ANSWER_S))
        answered = [rank for rank in ranks if self._store.check([f"stands/{question}/{rank}"])]
        stands = {rank: self._store.get(f"stands/{question}/{rank}").decode() for rank in answered}
        reports = self._reports(range(self._world))
        self._tell(message(reports, found, stands, self._timeout_s, self._stacks))
        self._store.set(f"told/{question}", "")
        if found.is_certain:
            time.sleep(2 * self._poll_s)  # this process may serve the store
            _end_now()

    def _answer(self, question: int, *, ends: bool = True) -> None:
        """Say and write where this process stands; then end it, if the run ends."""
        self._store.set(f"stands/{question}/{self._rank}", _innermost(self._main))
        self._write_stacks()
        if ends and self._store.get(f"question/{question}") == b"end":
            with suppress(RuntimeError):
                self._store.wait([f"told/{question}"], timedelta(seconds=3 * ANSWER_S))
            _end_now()

    def _write_stacks(self) -> None:
        folder = self._stacks
        with dispensable(folder, "where this process stands was not written"):
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / f"rank-{self._rank}.txt").open("w", encoding="utf-8") as file:
                faulthandler.dump_traceback(file, all_threads=True)
            record = None
            with suppress(Exception):  # what torch recorded is an extra, and its format its own
                record = _flight_record()
            if record is not None:
                (folder / f"rank-{self._rank}-flight-recorder.json").write_bytes(record)


# ---- What is said


def message(
    reports: Mapping[int, Report], found: Found, stands: Mapping[int, str], timeout_s: float, stacks: Path
) -> str:
    """Return the line about processes that stand still.

    Args:
        reports: What all processes have told.
        found: Which stand still.
        stands: The line of code of those that have said it.
        timeout_s: For how long they have not moved.
        stacks: The folder of the stacks.

    Returns:
        One line.
    """
    named = []
    for rank in found.ranks[:MAX_NAMED]:
        report = reports[rank]
        if rank in stands:
            how = f"in {stands[rank]}"
        elif _is_stopped(report):
            how = "its process was stopped by a signal"
        else:
            how = "it does not answer: stopped, or its machine is gone"
        at = f"step {report.place.step}, {report.place.doing}"
        named.append(f"rank {rank} (process {report.process} on {report.host}) at {at}: {how}")
    if len(found.ranks) > MAX_NAMED:
        named.append(f"and {len(found.ranks) - MAX_NAMED} more")
    if found.is_certain:
        others = "hangs and the others wait" if len(found.ranks) == 1 else "hang and the others wait"
        end = "the run ends, and can go on from its last checkpoint"
    else:
        others, end = "stand in the same place", "the run goes on until its processes give up (ddp_timeout)"
    count = f"{len(found.ranks)} of {len(reports)} processes"
    return f"for {timeout_s:.0f} s {count} {others}: {'; '.join(named)}; {end}; stacks of all: {stacks}"


def _innermost(thread: int) -> str:
    """Return where a thread stands: its innermost line, and the innermost one outside of libraries."""
    frame = sys._current_frames().get(thread)
    frames = traceback.extract_stack(frame) if isinstance(frame, FrameType) else []
    if not frames:
        return "code that is not Python"
    last = frames[-1]
    ours = next((one for one in reversed(frames) if "site-packages" not in one.filename), last)
    texts = [f"{one.name} ({Path(one.filename).name}:{one.lineno})" for one in (last, ours)]
    return texts[0] if texts[0] == texts[1] else f"{texts[0]}, called by {texts[1]}"


def _is_stopped(report: Report) -> bool:
    """Return whether a process of this machine was stopped by a signal."""
    with suppress(psutil.Error):
        return report.host == socket.gethostname() and psutil.Process(report.process).status() == psutil.STATUS_STOPPED
    return False


def _flight_record() -> bytes | None:
    """Return the last collective operations as torch recorded them; ``None`` where there are none."""
    dump = getattr(torch._C._distributed_c10d, "_dump_fr_trace_json", None)
    if dump is None:
        return None
    record: Any = dump(includeCollectives=True, onlyActive=False)
    text = record if isinstance(record, bytes) else str(record).encode()
    return text if read_object(text.decode()).get("entries") else None


def _is_compiling() -> bool:
    """Return whether torch compiles just now: that may take long, and no other process need do it."""
    callbacks = sys.modules.get("torch._dynamo.callback")
    handler = getattr(callbacks, "callback_handler", None)
    return getattr(handler, "_CompilationCallbackHandler__pending_callbacks_counter", 0) > 0


def _end_now() -> None:
    """End this process whatever its main thread waits for."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(HANG_EXIT_CODE)
