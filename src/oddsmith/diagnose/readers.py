"""Read the history of a run: from a run folder, its event log, ``trainer_state.json``, a log or a table of any form."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import DataError, NotAFileError
from ..system.outside import read_text, require_file
from ..system.run_folder import EVENTS_FILE, TRAINER_STATE_FILE, Event, is_event, require_plain_run
from ..system.strict_json import read_json
from .console_log import LogReader, history_of_lines
from .history import History, HistoryBuilder
from .names import TRAIN_LOSS, held_out_name, in_set, known_name
from .text import encoding_of, has_html_table, lines_of, text_of_html

EXPECTED = "a run folder, trainer_state.json, events.jsonl, a console log, or a CSV of W&B or TensorBoard"
STANDARD_INPUT = "-"
MAX_STATE_BYTES = 500_000_000  # a line of log is about 1,000
# Settings that rules use, from the start event itself or from its "settings".
USED_SETTINGS = ("beta", "learning_rate", "max_steps", "warmup_steps", "parameters", "trainable_parameters", "adapter")
# Logs in the folders of other trainers: LLaMA-Factory's, and ms-swift's.
LOG_FILES = ("trainer_log.jsonl", "logging.jsonl")
HTML_LINES = 5_000  # in which a table of HTML is looked for


def read_history(path: str | Path) -> History:
    """Read the metrics of a run; ``DataError`` if the path is not there or has no metric.

    The path is a run folder of any trainer, or one of its files: our ``events.jsonl``, ``trainer_state.json``, a
    console log, a JSON object a line, a notebook, a pasted table, a CSV export; a folder of CSV exports; or ``-`` for
    standard input.
    """
    if str(path) != STANDARD_INPUT:
        return _read(Path(path), str(path))
    with tempfile.NamedTemporaryFile(suffix=".log") as file:
        try:
            shutil.copyfileobj(sys.stdin.buffer, file)
        except OSError as error:  # a folder, or a descriptor that is open for writing alone
            raise DataError(f"standard input cannot be read: {error.strerror or error}") from error
        file.flush()
        return _read(Path(file.name), "standard input")


def _read(path: Path, source: str) -> History:
    try:
        if path.is_dir():
            history = _read_folder(path)
        elif path.exists():
            require_file(path)
            history = _read_file(path)
        else:
            raise DataError(f"{source} is not there; expected {EXPECTED}")
    except NotAFileError as error:
        raise DataError(str(error)) from error
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror or error}") from error
    if history.is_empty:
        what = f"no metric found in it (not understood: {history.unread_example[:100]!r})" if history.unread else ""
        raise DataError(f"{source}: {what or 'no metric found in it'}; expected {EXPECTED}")
    history.source = source
    return history


def _read_folder(path: Path) -> History:
    """Read our event log, the state of the run or of its last checkpoint, another trainer's log, or CSV files."""
    require_plain_run(path)
    checkpoints = sorted(path.glob("checkpoint-*/" + TRAINER_STATE_FILE), key=_checkpoint_step)
    logs = [path / name for name in LOG_FILES]
    for file in (path / EVENTS_FILE, path / TRAINER_STATE_FILE, *checkpoints[-1:], *logs):
        if file.exists() and not (history := _read_file(file)).is_empty:
            if (path / "adapter_config.json").is_file():
                history.settings.setdefault("adapter", True)
            return history
    tables = sorted(path.glob("*.csv"))
    if not tables:
        raise DataError(
            f"{path} holds no metrics; expected {EVENTS_FILE}, {TRAINER_STATE_FILE}, {' or '.join(LOG_FILES)}, or CSV"
            " exports in it"
        )
    return history_of_tables(tables)


def _checkpoint_step(state: Path) -> int:
    digits = re.sub(r"\D", "", state.parent.name)[-12:]
    return int(digits) if digits else 0


def _read_file(path: Path) -> History:
    """Choose the reader by the beginning of the content, and by the name where that is not enough."""
    first = next(lines_of(path), "").strip()
    of_events = first.startswith("{") and is_event(next(filter(None, map(_json, islice(lines_of(path), 100))), None))
    if of_events and not (history := _read_event_log(path)).is_empty:
        return history
    if (of_document := _read_document(path, first)) is not None:
        return of_document
    lines: Iterable[str] = lines_of(path)
    if has_html_table(islice(lines_of(path), HTML_LINES)):
        lines = text_of_html(lines)
    return history_of_lines(lines, value=_metric_in_file_name(path))


def _json(line: str) -> Any:
    """Return the value of a line of JSON; ``None`` for other lines."""
    try:
        return read_json(line)
    except ValueError:
        return None


# ---- Our event log


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
            self._builder.add(step, event, null_is_nan=True, of_evaluation=kind == Event.EVALUATE)
        elif kind == Event.END:
            history.finished = True

    def build(self) -> History:
        """Return the history so far."""
        return self._builder.build()


# ---- One JSON document: trainer_state.json, a list of log entries, a notebook


def _read_document(path: Path, first: str) -> History | None:
    """Return the history in a file that is one JSON document; ``None`` for other files, as those with one a line.

    ``DataError`` for a file that is called ``.json`` and is none, or holds no history.
    """
    document = _document_in(path, first)
    if isinstance(document, list):
        reader = LogReader()
        for entry in document:
            if isinstance(entry, dict):
                reader.add(entry)
        return reader.history()
    if isinstance(document, dict) and isinstance(document.get("log_history"), list):
        return _history_of_state(document, path)
    if isinstance(document, dict) and isinstance(document.get("cells"), list):
        return history_of_lines(_lines_of_notebook(document["cells"]))
    if document is not None and path.suffix.lower() == ".json":
        raise DataError(f"{path} has no log_history; expected the trainer_state.json that a Trainer saves")
    return None


def _document_in(path: Path, first: str) -> Any:
    """Return the JSON document that a file is, by its name and its first line; ``None`` if it is none."""
    is_named_so, of_line = path.suffix.lower() == ".json", _json(first)
    is_log = isinstance(of_line, dict) and "log_history" not in of_line and not is_named_so  # with one a line
    if is_log or not (is_named_so or re.match(r"[{\[]\s*(?:[{\"]|$)", first)):
        return None
    if path.stat().st_size > MAX_STATE_BYTES:
        raise DataError(f"{path} has {path.stat().st_size:,} bytes; a JSON document of more than 500 MB is not read")
    try:
        return read_json(read_text(path, encoding=encoding_of(path), errors="replace"))
    except ValueError as error:
        if is_named_so and not isinstance(of_line, dict):
            raise DataError(f"{path} is no readable JSON ({error}); expected trainer_state.json") from error
        return None


def _history_of_state(state: Mapping[str, Any], path: Path) -> History:
    """Return the history in the state that all trainers built on that of transformers save."""
    builder = HistoryBuilder()
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


def _lines_of_notebook(cells: Iterable[Any]) -> Iterable[str]:
    """Yield the lines of what the cells of a notebook have put out."""
    for cell in cells:
        for output in (cell.get("outputs") or ()) if isinstance(cell, dict) else ():
            found = output.get("data") or {} if isinstance(output, dict) else {}
            text = found.get("text/html") or found.get("text/plain") or output.get("text") or ""
            yield from text_of_html("".join(text).split("\n"))


# ---- Tables in files of their own


def history_of_tables(paths: Iterable[Path]) -> History:
    """Return the history in several CSV exports of one run."""
    builder = HistoryBuilder()
    for path in paths:
        reader = LogReader(_metric_in_file_name(path))
        for line in lines_of(path):
            reader.read(line)
        reader.fill(builder)
    return builder.build()


def _metric_in_file_name(path: Path) -> str | None:
    """Return the longest end of a file's name that is the name of a metric."""
    stem = path.stem.rpartition("tag-")[2]
    if stem.endswith(f"train_{TRAIN_LOSS}"):  # the mean of the whole run
        return None
    words = re.split(r"(?=_)", stem)
    for first in range(len(words)):
        name = "".join(words[first:]).lstrip("_")
        if name == TRAIN_LOSS:
            return "loss"
        if (metric := known_name(name)) is not None:
            return metric
        if (place := held_out_name(name)) is not None:
            return in_set(*place)
    return None
