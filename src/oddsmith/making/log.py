"""Keep every answer and every score in a file as it comes, so that a process that ends at any moment loses nothing.

    {"event": "start", "settings": {"--samples": "8", ...}, "time": ...}      once, the first line
    {"event": "answer", "question": key, "model": ..., "sample": 0, "text": ..., "tokens": ..., "is_finished": ...}
    {"event": "unanswered", "question": key, "model": ..., "sample": 0, "reason": ...}
    {"event": "score", "question": key, "model": ..., "sample": 0, "judge": ..., "basis": ..., "value": ...,
     "reason": ..., "counts": ...}
    {"event": "verdict", "question": key, "judge": ..., "basis": ..., "shown": ..., "value": ..., "fault": ...}

Lines are only appended, each in one piece. A last line that is not whole, as after a power cut, is cut off when the
file is opened again. One process at a time has it: the system takes the lock away when its owner dies.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..errors import ConfigError, DataError, SaveError
from ..system.files import explained, in_words
from ..system.outside import open_file
from ..system.strict_json import read_object, strict
from .answers.drawing import Unanswered
from .records import Answer, Score, Verdict

SUFFIX = ".log.jsonl"


class Log:
    """The log of one set of pairs, open in this process; a context manager.

    Args:
        path: The file; it is made if it is not there.
        settings: What decides on the answers, as flag -> text. A log with others is refused.

    Attributes:
        answers: The answers in it: (question, model, sample) -> answer.
        unanswered: Likewise, what was asked for in vain.
        scores: The scores in it, by the judge: (question, model, sample) -> score.
        bases: Likewise, the basis of each score.
        verdicts: (judge, basis, question) -> the verdicts in it, by what was shown.

    Raises:
        ConfigError: Another process has it, or it was begun with other settings.
        DataError: It is no such log, or a line in it is damaged.
    """

    def __init__(self, path: Path, settings: Mapping[str, str]):
        self.path = path
        self.answers: dict[tuple[str, str, int], Answer] = {}
        self.unanswered: dict[tuple[str, str, int], Unanswered] = {}
        self.scores: dict[str, dict[tuple[str, str, int], Score]] = {}
        self.bases: dict[str, dict[tuple[str, str, int], str]] = {}
        self.verdicts: dict[tuple[str, str, str], dict[str, Verdict]] = {}
        with explained(self._explain):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open_file(path, "a+b", follow=False, buffering=0)
            try:
                self._lock()
                is_new = self._read(settings)
                if is_new:
                    self._append({"event": "start", "settings": dict(settings), "time": time.time()})
            except BaseException:
                self._file.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            os.fsync(self._file.fileno())
        self._file.close()

    def known(self, model: str) -> set[tuple[str, int]]:
        """Return what a model need not be asked for again: keys of questions, and samples."""
        found = [*self.answers, *self.unanswered]
        return {(question, sample) for question, answered_by, sample in found if answered_by == model}

    def add(self, given: Answer | Unanswered) -> None:
        """Keep an answer, or that there is none; what is there already stays as it is."""
        key = (given.question, given.model, given.sample)
        if key not in self.answers and key not in self.unanswered:
            event = "answer" if isinstance(given, Answer) else "unanswered"
            self._append({"event": event, **asdict(given)})
            self._take(given)

    def add_scores(self, judge: str, basis: str, answers: Sequence[Answer], scores: Sequence[Score]) -> None:
        """Keep what a judge says of answers to a question, one score for each; it replaces what it said before."""
        lines = []
        for answer, score in zip(answers, scores, strict=True):
            key = (answer.question, answer.model, answer.sample)
            place = dict(zip(("question", "model", "sample"), key, strict=True))
            lines.append({"event": "score", **place, "judge": judge, "basis": basis, **asdict(score)})
        self._append(*lines)
        for answer, score in zip(answers, scores, strict=True):
            self._take_score(judge, basis, (answer.question, answer.model, answer.sample), score)

    def add_verdict(self, judge: str, basis: str, question: str, verdict: Verdict) -> None:
        """Keep what a judge says of answers to a question that it was shown together."""
        self._append({"event": "verdict", "question": question, "judge": judge, "basis": basis, **asdict(verdict)})
        self.verdicts.setdefault((judge, basis, question), {})[verdict.shown] = verdict

    def _append(self, *lines: Mapping[str, Any]) -> None:
        data = "".join(json.dumps(strict(line), allow_nan=False) + "\n" for line in lines).encode()
        with explained(self._explain):
            start = os.lseek(self._file.fileno(), 0, os.SEEK_END)
            try:
                while data:  # a full disk takes a part
                    data = data[self._file.write(data) :]
            except OSError:
                with suppress(OSError):
                    os.ftruncate(self._file.fileno(), start)
                raise

    def _explain(self, fault: int, error: Exception) -> None:
        raise SaveError(f"{self.path}: cannot be written ({in_words(fault)}); what is in it stays") from error

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{self.path}: another process is making these pairs; wait for it or end it, or choose another --output"
            ) from None
        except OSError:  # a file system without locks
            pass

    def _read(self, settings: Mapping[str, str]) -> bool:
        """Read what is there, cut off a last line that is not whole, and return whether nothing was there."""
        self._file.seek(0)
        data = bytearray()
        while piece := self._file.read(2**24):
            data += piece
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.ftruncate(self._file.fileno(), whole)
        lines = bytes(data[:whole]).split(b"\n")[:-1]
        for number, line in enumerate(lines, 1):
            try:
                found = read_object(line.decode())
                if number == 1:
                    self._compare(found, settings)
                else:
                    self._take_line(found)
            except (ValueError, TypeError, KeyError) as error:
                if isinstance(error, ConfigError | DataError):
                    raise
                raise DataError(
                    f"{self.path}, line {number}: is no line of a log of `oddsmith data make`;"
                    " remove it, or the file to begin anew, or choose another --output"
                ) from error
        return not lines

    def _compare(self, start: Mapping[str, Any], settings: Mapping[str, str]) -> None:
        there = start["settings"]
        if start["event"] != "start" or not isinstance(there, dict):
            raise KeyError("settings")
        for name in dict.fromkeys([*settings, *there]):
            if there.get(name) != settings.get(name):
                was, now = (str(given.get(name) or "none") for given in (there, settings))
                raise ConfigError(
                    f"{self.path}: was begun with {name} {was}, and this is {now}; give the same again to go on,"
                    " choose another --output, or remove the file to begin anew"
                )

    def _take_line(self, found: dict[str, Any]) -> None:
        event = found.pop("event")
        if event == "start":  # repaired by hand, or joined
            raise KeyError(event)
        if event == "score":
            judge, basis = (_text(found.pop(name)) for name in ("judge", "basis"))
            key = tuple(found.pop(name) for name in ("question", "model", "sample"))
            self._take_score(judge, basis, key, _typed(Score, found))
        elif event == "verdict":
            judge, basis, question = (_text(found.pop(name)) for name in ("judge", "basis", "question"))
            verdict = _typed(Verdict, found)
            self.verdicts.setdefault((judge, basis, question), {})[verdict.shown] = verdict
        else:
            self._take(_typed({"answer": Answer, "unanswered": Unanswered}[event], found))

    def _take_score(self, judge: str, basis: str, key: tuple[str, str, int], score: Score) -> None:
        self.scores.setdefault(judge, {})[key] = score
        self.bases.setdefault(judge, {})[key] = basis

    def _take(self, given: Answer | Unanswered) -> None:
        there: dict[Any, Any] = self.answers if isinstance(given, Answer) else self.unanswered
        there[given.question, given.model, given.sample] = given


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(type(value).__name__)
    return value


def _typed(kind: Any, found: Mapping[str, Any]) -> Any:
    """Make a record of a line; ``TypeError`` where a field is missing, unknown or of another type."""
    kinds = {"str": str, "int": int, "bool": bool, "int | None": int | None, "float | None": int | float | None}
    kinds["str | int | None"] = str | int | None
    kinds["Mapping[str, int]"] = dict
    for field in fields(kind):
        value = found.get(field.name)
        is_bool = isinstance(value, bool)
        if field.name in found and (not isinstance(value, kinds[str(field.type)]) or is_bool != (field.type == "bool")):
            raise TypeError(field.name)
    return kind(**found)
