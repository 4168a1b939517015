"""Collect what a run records beside its curves: incidents, checkpoints, answers and held-out pairs.

The values come from untrusted files. They are converted to the shape that the page expects; all else is left out.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from pathlib import Path
from typing import Any

from ..system.run_folder import INCIDENTS, PAIRS_FILE, RESUMED, Event
from ..system.strict_json import read_object
from .files import read_bytes

MAX_SNAPSHOTS = 400  # evaluations with margins; beyond, every second one is dropped
MAX_SETS = 50  # evaluation sets
MAX_RANKS = 4096  # processes
MAX_MARKS = 100  # incidents in the list; all are counted
MAX_ROWS = 8  # row numbers in the text of an incident
MAX_PAIRS_BYTES = 8_000_000
MAX_PAIRS, MAX_TOKENS, MAX_CHARACTERS = 50, 2000, 20_000
MAX_CUT_ROWS = 1_000_000
PAIR_KINDS = ("worst", "flipped", "forgotten")


class RunEvents:
    """Collects incidents, checkpoints and answers event by event. Steps that a resumed run repeats count once."""

    def __init__(self) -> None:
        self.snapshots: list[dict[str, Any]] = []  # margins of the held-out pairs, one an evaluation
        self.checkpoint: int | None = None  # step of the last one
        self.ranks: dict[str, Any] | None = None  # the last waiting share of each process, with its step
        self._answers: dict[str, list[dict[str, Any]]] = {}  # set -> the first answers, and the last
        self._marks: deque[dict[str, Any]] = deque(maxlen=MAX_MARKS)
        self._counts: Counter[str] = Counter()

    def add(self, event: dict[str, Any]) -> None:
        """Add an event; kinds that are not shown here are left out."""
        kind, step = event["event"], event["step"]
        if kind == Event.START and step > 0:
            self._cut_back(step)
            self._mark(RESUMED, step, INCIDENTS[RESUMED].sentence)
        elif kind == Event.CHECKPOINT:
            self.checkpoint = step
        elif kind in INCIDENTS:
            self._mark(kind, step, _sentence(event))
        elif kind == Event.PAIRS and (snapshot := _clean_snapshot(event)) is not None:
            self.snapshots.append(snapshot)
            if len(self.snapshots) > MAX_SNAPSHOTS:
                del self.snapshots[1:-1:2]
        elif kind == Event.RANKS:
            shares = _numbers(event.get("waiting_share"), MAX_RANKS)
            self.ranks = {"step": step, "waiting_share": shares} if shares and None not in shares else self.ranks
        elif kind == Event.SAMPLES:
            name = text(event.get("set"), 200)
            if name in self._answers or len(self._answers) < MAX_SETS:
                answers = _dicts(event.get("answers"), MAX_PAIRS)
                texts: list[dict[str, Any]] = [
                    {
                        **{name: text(one.get(name)) for name in ("Prompt", "Policy")},
                        "is_cut": one.get("is_cut") is True,
                    }
                    for one in answers
                ]
                first = self._answers.get(name, [])[:1]
                self._answers[name] = [*first, {"set": name, "step": step, "answers": texts}]

    def _mark(self, kind: str, step: int, sentence: str) -> None:
        self._marks.append({"kind": kind, "step": step, "text": sentence})
        self._counts[kind] += 1

    def _cut_back(self, step: int) -> None:
        """Drop what came after a step, because a resumed run repeats it."""
        self.checkpoint = step
        self.ranks = None if self.ranks is None or self.ranks["step"] > step else self.ranks
        self.snapshots = [one for one in self.snapshots if one["step"] <= step]
        kept = {name: [one for one in answers if one["step"] <= step] for name, answers in self._answers.items()}
        self._answers = {name: answers for name, answers in kept.items() if answers}
        undone = [mark for mark in self._marks if mark["kind"] != RESUMED and mark["step"] > step]
        self._counts.subtract(mark["kind"] for mark in undone)
        self._marks = deque((mark for mark in self._marks if mark not in undone), maxlen=MAX_MARKS)

    @property
    def marks(self) -> list[dict[str, Any]]:
        """Return the last incidents: ``kind``, ``step`` and ``text``."""
        return list(self._marks)

    @property
    def counts(self) -> dict[str, int]:
        """Return the number of incidents of each kind."""
        return {kind: count for kind, count in self._counts.items() if count > 0}

    def waiting(self) -> dict[str, Any] | None:
        """Return the mean waiting share at the last log line, and the rank that the others wait for most."""
        if self.ranks is None:
            return None
        shares = self.ranks["waiting_share"]
        slowest = min(range(len(shares)), key=shares.__getitem__)
        return {"mean": math.fsum(shares) / len(shares), "slowest": slowest, "processes": len(shares)}

    @property
    def samples(self) -> list[dict[str, Any]]:
        """Return the first and the last answers of each set."""
        return [{"set": name, "first": answers[0], "last": answers[-1]} for name, answers in self._answers.items()]


def _sentence(event: dict[str, Any]) -> str:
    """Word an incident: what happened, why, and the rows behind it."""
    kind, words = event["event"], [INCIDENTS[event["event"]].sentence]
    cause, checkpoint = text(event.get("cause"), 100), text(event.get("checkpoint"), 100)
    if kind == Event.SKIPPED and cause:
        words.append(f": {cause} {'of the loss' if cause == Event.SPIKE else 'not finite'}")
    if kind == Event.SPIKE and (loss := number(event.get("loss"))) is not None:
        words.append(f" ({loss:.4g})")
    if checkpoint:
        words.append(f", {checkpoint}")
    if kind == Event.STOPPED_EARLY and (reason := text(event.get("reason"), 200)):
        words.append(f": {reason}")
    rows = [int(row) for row in _numbers(event.get("rows"), MAX_ROWS) if row is not None]
    if rows:
        more = (number(event.get("num_rows")) or 0) - len(rows)
        words.append(f"; rows {', '.join(map(str, rows))}{f' and {more:.0f} more' if more > 0 else ''}")
    return "".join(words)


def read_pairs(folder: Path) -> list[dict[str, Any]]:
    """Return the held-out pairs of a run folder's last evaluations, one entry a set; empty if nothing is readable.

    ``step`` is that of the evaluation, ``first_step`` that of the first one, and ``compared_with`` the step that the
    tokens are compared with (0 is the untrained model).
    """
    content = read_bytes(folder / PAIRS_FILE, MAX_PAIRS_BYTES + 1)
    try:
        found = read_object(content.decode()) if len(content) <= MAX_PAIRS_BYTES else {}
    except ValueError:
        return []
    sets = found.get("sets")
    if not isinstance(sets, dict):
        return []
    return [_clean_set(name, one) for name, one in list(sets.items())[:MAX_SETS] if isinstance(one, dict)]


# ---- Untrusted values


def number(value: Any) -> float | None:
    """Return a finite number; ``None`` for anything else."""
    usable = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    return float(value) if usable and math.isfinite(value) else None


def text(value: Any, max_characters: int = MAX_CHARACTERS) -> str:
    """Return text of bounded length, empty for anything else; surrogates, which UTF-8 cannot hold, are replaced."""
    return value[:max_characters].encode("utf-8", errors="replace").decode("utf-8") if isinstance(value, str) else ""


def _numbers(values: Any, limit: int = MAX_TOKENS) -> list[float | None]:
    return [number(value) for value in values[:limit]] if isinstance(values, list) else []


def _dicts(values: Any, limit: int) -> list[dict[str, Any]]:
    return [value for value in values[:limit] if isinstance(value, dict)] if isinstance(values, list) else []


def _clean_snapshot(event: dict[str, Any]) -> dict[str, Any] | None:
    """Return ``set``, ``step``, ``margins``, ``below_zero`` and ``log_odds`` of an event ``pairs`` if all are there."""
    margins, odds = event.get("margins"), event.get("log_odds")
    if not isinstance(margins, dict) or not isinstance(odds, dict):
        return None
    edges, counts = _numbers(margins.get("edges")), _numbers(margins.get("counts"))
    figures = {name: number(odds.get(name)) for name in ("mean", "deviation", "pairs")}
    share = number(event.get("below_zero"))
    if len(edges) != len(counts) + 1 or None in (*edges, *counts, *figures.values(), share) or not figures["pairs"]:
        return None
    return {
        "set": text(event.get("set"), 200),
        "step": event["step"],
        "margins": {"edges": edges, "counts": counts},
        "below_zero": share,
        "log_odds": figures,
    }


def _clean_set(name: str, found: dict[str, Any]) -> dict[str, Any]:
    lengths, inspected = found.get("lengths"), found.get("inspected")
    points = [_numbers(one, 2) for one in lengths[:MAX_TOKENS]] if isinstance(lengths, list) else []
    kinds = inspected if isinstance(inspected, dict) else {}
    return {
        "set": text(name, 200),
        **{name: number(found.get(name)) for name in ("step", "first_step", "compared_with")},
        "lengths": [one for one in points if len(one) == 2 and None not in one],
        "inspected": {kind: [_clean_pair(one) for one in _dicts(kinds.get(kind), MAX_PAIRS)] for kind in PAIR_KINDS},
    }


def _clean_pair(pair: dict[str, Any]) -> dict[str, Any]:
    return {
        **{name: number(pair.get(name)) for name in ("row", "dataset_row", "margin", "before")},
        "prompt": text(pair.get("prompt")),
        **{side: _clean_side(pair.get(side)) for side in ("chosen", "rejected")},
    }


def _clean_side(found: Any) -> dict[str, Any]:
    side = found if isinstance(found, dict) else {}
    tokens = side.get("tokens")
    return {
        "tokens": [text(token, 1000) for token in tokens[:MAX_TOKENS]] if isinstance(tokens, list) else [],
        "change": _numbers(side.get("change")),
        "tokens_not_shown": number(side.get("tokens_not_shown")) or 0,
        "is_cut": False,  # see mark_cut_answers
    }


def mark_cut_answers(pairs: list[dict[str, Any]], reports: Any) -> None:
    """Set ``is_cut`` of the answers that ``max_length`` cut, by what the run's ``start`` event reports of its sets.

    A report counts rows as the dataset does. Older files of pairs have only their places among the rows that were
    kept, which are the same where no row was dropped.
    """
    for one in pairs:
        names = (one["set"].removeprefix("eval_"), "eval")
        found = [reports[name] for name in names if isinstance(reports, dict) and isinstance(reports.get(name), dict)]
        cut = found[0].get("cut") if found else None
        if not isinstance(cut, dict):
            continue
        none_dropped = found[0].get("rows") == found[0].get("kept")
        for side in ("chosen", "rejected"):
            rows = {int(row) for row in _numbers(cut.get(side), MAX_CUT_ROWS) if row is not None}
            for pair in (pair for kind in one["inspected"].values() for pair in kind):
                row = pair["row"] if pair["dataset_row"] is None and none_dropped else pair["dataset_row"]
                pair[side]["is_cut"] = row is not None and int(row) in rows
