"""Read the history of a run: from a run folder, its event log, ``trainer_state.json``, a console log or CSV files.

| CSV head | from |
|---|---|
| ``Step, RUN - train/loss, RUN - train/loss__MIN, ...`` | W&B, "export CSV" of a chart |
| ``_step, _runtime, train/loss, train/global_step, ...`` | W&B, ``run.history().to_csv()`` |
| ``Wall time, Step, Value`` | TensorBoard; the metric is in the file's name: ``run-NAME-tag-train_loss.csv`` |
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..system.run_folder import EVENTS_FILE, TRAINER_STATE_FILE, Event
from .console_log import MAX_LINE, history_of_lines, lines_of, read_json_lines
from .history import History, HistoryBuilder
from .names import held_out_name, known_name

EXPECTED = "a run folder, trainer_state.json, events.jsonl, a console log, or a CSV of W&B or TensorBoard"
MAX_STATE_BYTES = 500_000_000  # a line of log is about 1,000
# Settings that rules use, from the start event itself or from its "settings".
USED_SETTINGS = ("beta", "learning_rate", "max_steps", "warmup_steps", "parameters", "trainable_parameters", "adapter")
_STEP_COLUMNS = ("train/global_step", "step", "global_step", "_step")


def read_history(path: str | Path) -> History:
    """Read the metrics of a run; ``DataError`` if the path is not there or has no metric.

    The path is a run folder of any trainer, or one of its files: our ``events.jsonl``, ``trainer_state.json``, a
    console log, LLaMA-Factory's ``trainer_log.jsonl``, a CSV export; or a folder of CSV exports.
    """
    path = Path(path)
    try:
        if path.is_dir():
            history = _read_folder(path)
        elif path.is_file():
            history = _read_file(path)
        else:
            raise DataError(f"{path} is not there; expected {EXPECTED}")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    if history.is_empty:
        raise DataError(f"{path}: no metric found in it; expected {EXPECTED}")
    return history


def _read_folder(path: Path) -> History:
    """Read our event log, the state of the run or of its last checkpoint, another trainer's log, or CSV files."""
    checkpoints = sorted(path.glob("checkpoint-*/" + TRAINER_STATE_FILE), key=_checkpoint_step)
    for file in (path / EVENTS_FILE, path / TRAINER_STATE_FILE, *checkpoints[-1:], path / "trainer_log.jsonl"):
        if file.is_file() and not (history := _read_file(file)).is_empty:
            if (path / "adapter_config.json").is_file():
                history.settings.setdefault("adapter", True)
            return history
    tables = sorted(path.glob("*.csv"))
    if not tables:
        raise DataError(
            f"{path} holds no metrics; expected {EVENTS_FILE}, {TRAINER_STATE_FILE}, trainer_log.jsonl or CSV exports"
            " in it"
        )
    return _read_tables(tables, str(path))


def _checkpoint_step(state: Path) -> int:
    digits = re.sub(r"\D", "", state.parent.name)[-12:]
    return int(digits) if digits else 0


def _read_file(path: Path) -> History:
    """Choose the reader by the file's name and the beginning of its content."""
    if path.suffix.lower() in (".csv", ".tsv"):
        return _read_tables([path], str(path))
    first = next(lines_of(path), "").strip()
    if path.suffix == ".json" and first.startswith("{"):
        return _read_state(path)
    if path.suffix == ".jsonl" or first.startswith('{"'):
        if is_event(next(filter(None, map(_json, lines_of(path))), None)):
            return _read_event_log(path)
        if not (history := read_json_lines(path)).is_empty:
            return history
    return history_of_lines(lines_of(path), str(path))


def _json(line: str) -> Any:
    """Return the value of a line of JSON; ``None`` for other lines."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


# ---- Our event log


def is_event(value: Any) -> bool:
    """Return whether a JSON value is a line of the event log."""
    return isinstance(value, dict) and isinstance(value.get("event"), str) and isinstance(value.get("step"), int)


def _read_event_log(path: Path) -> History:
    log = EventLogHistory(str(path))
    skipped = 0
    for line in lines_of(path):
        if is_event(event := _json(line)):
            log.add(event)
        else:
            skipped += 1
    history = log.build()
    history.skipped = skipped
    return history


def history_of_events(events: Iterable[Mapping[str, Any]]) -> History:
    """Return the history of events in their order."""
    log = EventLogHistory()
    for event in events:
        log.add(event)
    return log.build()


class EventLogHistory:
    """Collects a history event by event. ``null`` in the event log stands for NaN or infinity."""

    def __init__(self, source: str = ""):
        self._builder = HistoryBuilder(source)
        self._builder.history.finished = False

    def add(self, event: Mapping[str, Any]) -> None:
        """Add one event."""
        kind, step, history = event["event"], event["step"], self._builder.history
        if kind == Event.START:
            if step == 0:
                self._builder.forget()
            else:
                self._builder.cut_back(step)
            history.finished = False
            settings = event.get("settings")
            given = {**(settings if isinstance(settings, dict) else {}), **event}
            history.settings.update({name: given[name] for name in USED_SETTINGS if name in given})
        elif kind in (Event.LOG, Event.EVALUATE):
            self._builder.add(step, event, null_is_nan=True)
        elif kind == Event.END:
            history.finished = True

    def build(self) -> History:
        """Return the history so far."""
        return self._builder.build()


# ---- trainer_state.json, which all trainers built on that of transformers write: TRL, Axolotl, Unsloth, ours


def _read_state(path: Path) -> History:
    if path.stat().st_size > MAX_STATE_BYTES:
        raise DataError(
            f"{path} has {path.stat().st_size:,} bytes; a trainer_state.json of more than 500 MB is not read"
        )
    try:
        state = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no readable JSON ({error}); expected trainer_state.json") from error
    if not isinstance(state, dict) or not isinstance(state.get("log_history"), list):
        raise DataError(f"{path} has no log_history; expected the trainer_state.json that a Trainer saves")
    builder = HistoryBuilder(str(path))
    history = builder.history
    for number, entry in enumerate(state["log_history"], 1):
        if not isinstance(entry, dict):
            history.skipped += 1
            continue
        step = entry.get("step")
        # transformers writes NaN as JSON's extension NaN, which Python reads; null is a number that was not finite
        builder.add(step if isinstance(step, int) else number, entry, null_is_nan="loss" in entry)
    done, planned = state.get("global_step"), state.get("max_steps")
    if isinstance(planned, int) and planned > 0:
        history.settings["max_steps"] = planned
        history.finished = isinstance(done, int) and done >= planned
    if (path.parent / "adapter_config.json").is_file():
        history.settings["adapter"] = True
    return builder.build()


# ---- CSV exports


def _read_tables(paths: Iterable[Path], source: str) -> History:
    builder = HistoryBuilder(source)
    csv.field_size_limit(MAX_LINE)
    for path in paths:
        rows = csv.reader((line.replace("\0", "") for line in lines_of(path)), strict=False)
        head = next(rows, None)
        if head is not None:
            _read_rows(builder, head, rows, path)
    return builder.build()


def _read_rows(builder: HistoryBuilder, head: list[str], rows: Iterable[list[str]], path: Path) -> None:
    columns = [column.strip().lstrip("\ufeff") for column in head]
    lower = [column.lower() for column in columns]
    place = next((lower.index(name) for name in _STEP_COLUMNS if name in lower), None)
    if place is None:
        return
    is_tensorboard = lower[:3] == ["wall time", "step", "value"]
    names = [None, None, _metric_in_file_name(path)] if is_tensorboard else _metrics_of_columns(columns)
    names[place] = None
    for number, row in enumerate(rows, 1):
        try:
            step = int(float(row[place])) if row[place] else number
        except (ValueError, IndexError, OverflowError):
            builder.history.skipped += 1
            continue
        builder.add(step, {name: cell for name, cell in zip(names, row, strict=False) if name and cell})


def _metrics_of_columns(columns: list[str]) -> list[str | None]:
    """Return ``train/loss`` for ``run-1 - train/loss``, ``None`` for columns of extremes and of any other run."""
    names: list[str | None] = []
    first_run: str | None = None
    for column in columns:
        run, separator, name = column.rpartition(" - ")
        if separator and first_run is None:
            first_run = run
        is_other_run = bool(separator) and run != first_run
        names.append(None if is_other_run or name.endswith(("__MIN", "__MAX")) else name)
    return names


def _metric_in_file_name(path: Path) -> str | None:
    """Return the longest end of a file's name that is the name of a metric."""
    words = re.split(r"(?=_)", path.stem.rpartition("tag-")[2])
    for first in range(len(words)):
        name = "".join(words[first:]).lstrip("_")
        if name == "train_loss":
            return "loss"
        if known_name(name) or held_out_name(name):
            return name
    return None
