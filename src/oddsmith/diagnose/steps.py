"""Find the optimizer step of each record of a log: written beside it, on a progress bar, by its epoch, or counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from .history import EPOCH
from .records import Record

MAX_RESTARTS = 50  # with more falls of the step, the source is in no order


class Placed(NamedTuple):
    """Records with a step each, and what their steps are."""

    records: list[Record]
    unit: str  # "steps"; "epochs" or "log lines" where the source has no steps
    max_steps: int | None  # of the whole run
    repeated: int  # records of the training that were left out, because a later attempt repeats them


def place_records(records: Sequence[Record], facts: Mapping[str, float]) -> Placed:
    """Give each record a step, in place. An evaluation without a step belongs to the one before it."""
    training = [record for record in records if record.is_training] or list(records)
    planned = int(facts["max_steps"]) if facts.get("max_steps", 0) > 0 else None
    epochs = [record.values.get(EPOCH, -1.0) for record in training]
    unit = "steps"
    if 2 * sum(record.step is not None for record in training) >= max(len(training), 1):
        planned = planned or _total_beside(training)
        _fill(records)
    elif (bar := _training_bar(training, planned)) is not None:
        planned = planned or (bar if bar > 0 else None)
        _read_off(records, bar)
    elif (planned := planned or _finished_bar(records)) and (in_all := _epochs_in_all(facts, epochs)):
        _by_epoch(records, planned / in_all)
    elif len(set(epochs)) == len(epochs) > 1 and all(0 < epoch == epoch // 1 for epoch in epochs):
        unit, planned = "epochs", None
        _by_epoch(records, 1)
    else:
        kept, repeated = _without_repeats(records, EPOCH)
        _count(kept)
        return Placed(kept, "log lines", None, repeated)
    kept, repeated = _without_repeats(records)
    last = max((record.step or 0 for record in kept), default=0)
    return Placed(kept, unit, planned if planned and planned >= last else None, repeated)


def _epochs_in_all(facts: Mapping[str, float], epochs: Sequence[float]) -> float:
    """Return the epochs of the whole run: as it was printed, or of the last record if that ends one; 0 if unknown."""
    last = max(epochs, default=0.0)
    in_all = facts.get("epochs", last if last == last // 1 else 0.0)
    return in_all if 0 <= min(epochs, default=-1.0) <= last <= in_all else 0.0


def _fill(records: Sequence[Record]) -> None:
    last = 0
    for record in records:
        record.step = last = last if record.step is None else record.step


def _by_epoch(records: Sequence[Record], steps: float) -> None:
    """Compute the steps from the epochs, of which each has a number of steps."""
    last = 0.0
    for record in records:
        last = record.values.get(EPOCH, last)
        record.step = round(last * steps) if 0 <= last < 1e12 else 0


def _count(records: Sequence[Record]) -> None:
    count = 0
    for record in records:
        count += record.is_training
        record.step = count


def _total_beside(records: Sequence[Record]) -> int | None:
    """Return the end of the progress bar that shows the steps written beside the records."""
    shown = [total for record in records for total, done in record.before.items() if done == record.step]
    best = max(set(shown), key=shown.count, default=0)
    return best if best > 0 and 2 * shown.count(best) >= len(records) else None


def _training_bar(records: Sequence[Record], planned: int | None) -> int | None:
    """Return the end of the progress bar that moves from record to record; ``None`` if none does.

    Those of data processing and evaluation stand still, however many steps they have. With one record, it is the last.
    """
    if len(records) < 2:
        return next((total for record in records for total in reversed(record.before) if total > 0), None)
    moved = {total: 0 for record in records for total in record.before}
    for total in moved:
        moved[total] = len({record.before[total] for record in records if total in record.before})
    best = max(moved, key=lambda total: (total == planned, moved[total], total), default=0)
    return best if best and moved[best] >= max(2, len(records) / 2) else None


def _finished_bar(records: Sequence[Record]) -> int | None:
    """Return the end of a progress bar that is full after the last record, as a terminal shows it at last."""
    full = [total for record in records[-1:] for total, done in record.after.items() if total == done >= len(records)]
    return max(full, default=None)


def _read_off(records: Sequence[Record], bar: int) -> None:
    """Take the steps from a progress bar.

    tqdm redraws its bar at most ten times a second, and always after a line: where the bar before a record has not
    moved since the last one, the bar after it has the step.
    """
    last, epoch = 0, -1.0
    for record in records:
        step = record.before.get(bar, last)
        if record.is_training:
            if step == last:
                step = max(step, record.after.get(bar, step))
            last, epoch = step, record.values.get(EPOCH, -1.0)
        elif record.values.get(EPOCH) == epoch:
            step = last  # whatever the bar of the evaluation shows, which may be as long
        record.step = step


def _without_repeats(records: Sequence[Record], by: str = "step") -> tuple[list[Record], int]:
    """Leave out what a later attempt repeats, where the training falls back; return how much of it that was."""

    def place(record: Record) -> float:
        found = record.step if by == "step" else record.values.get(by)
        return -1.0 if found is None else found

    training = [place(record) for record in records if record.is_training]
    falls = sum(after < before for before, after in pairwise(training))
    if falls == 0 or falls > min(MAX_RESTARTS, len(training) / 4):
        return list(records), 0
    kept: list[Record] = []
    left_out, last = 0, -1.0
    for record in records:
        if record.is_training:
            if place(record) < last:
                again = place(record)
                left_out += sum(one.is_training and place(one) >= again for one in kept)
                kept = [one for one in kept if place(one) < again]
            last = place(record)
        kept.append(record)
    return kept, left_out
