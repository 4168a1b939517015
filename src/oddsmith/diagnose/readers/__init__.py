"""From a path to a history: which reader a file is for is told by its name, and by what it begins with."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ...errors import DataError
from ...system.run_folder import EVENTS_FILE, TRAINER_STATE_FILE
from ..history import History
from .console import read_console, read_json_lines
from .events import is_event, read_diary
from .lines import lines_of
from .state import read_state
from .tables import read_tables

EXPECTED = "a run folder, trainer_state.json, events.jsonl, a console log, or a CSV of W&B or TensorBoard"


def read_history(path: str | Path) -> History:
    """Read what was measured in a run.

    Args:
        path: A run folder of any trainer, or one of its files: our ``events.jsonl``, ``trainer_state.json``, a console
            log, LLaMA-Factory's ``trainer_log.jsonl``, a CSV export; or a folder of CSV exports.

    Returns:
        The history.

    Raises:
        DataError: There is nothing there, or nothing in it that could be read.
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
    """A run folder: our diary, the state of the run or of its last checkpoint, another trainer's log, or CSV files."""
    checkpoints = sorted(path.glob("checkpoint-*/" + TRAINER_STATE_FILE), key=_checkpoint_step)
    for file in (path / EVENTS_FILE, path / TRAINER_STATE_FILE, *checkpoints[::-1][:1], path / "trainer_log.jsonl"):
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
    return read_tables(tables, str(path))


def _checkpoint_step(state: Path) -> int:
    digits = re.sub(r"\D", "", state.parent.name)[-12:]
    return int(digits) if digits else 0


def _read_file(path: Path) -> History:
    if path.suffix.lower() in (".csv", ".tsv"):
        return read_tables([path], str(path))
    first = next(lines_of(path), "").strip()
    if path.suffix == ".json" and first.startswith("{"):
        return read_state(path)
    if path.suffix == ".jsonl" or first.startswith('{"'):
        return _read_json_lines(path)
    return read_console(path)


def _read_json_lines(path: Path) -> History:
    """Our diary or another's objects; a log that only begins like them is a console log."""
    for line in lines_of(path):
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if is_event(found):
            return read_diary(path)
        break
    history = read_json_lines(path)
    return read_console(path) if history.is_empty else history
