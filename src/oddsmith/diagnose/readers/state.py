"""Reader of ``trainer_state.json``, which every trainer built on transformers' leaves: TRL, Axolotl, Unsloth, ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...errors import DataError
from ..history import History, HistoryBuilder

LARGEST_FILE = 500_000_000  # bytes; a line of log is about 1,000


def read_state(path: Path) -> History:
    """The history of a ``trainer_state.json``.

    Args:
        path: The file. Beside it, an ``adapter_config.json`` tells that an adapter was trained.

    Returns:
        The history.

    Raises:
        DataError: It is no JSON, or has no ``log_history``.
    """
    if path.stat().st_size > LARGEST_FILE:
        raise DataError(
            f"{path} has {path.stat().st_size:,} bytes; a trainer_state.json of more than 500 MB is not read"
        )
    try:
        state = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no readable JSON ({error}); expected trainer_state.json") from error
    if not isinstance(state, dict) or not isinstance(state.get("log_history"), list):
        raise DataError(f"{path} has no log_history; expected the trainer_state.json that a Trainer saves")
    return history_of_state(state, path)


def history_of_state(state: dict[str, Any], path: Path) -> History:
    """The history that a loaded state holds.

    Args:
        state: What the file holds.
        path: Where it is from.

    Returns:
        The history.
    """
    builder = HistoryBuilder(str(path))
    for number, entry in enumerate(state["log_history"], 1):
        if not isinstance(entry, dict):
            builder.history.skipped += 1
            continue
        step = entry.get("step")
        # transformers writes NaN as JSON's extension NaN, which Python reads; null is a number that was not finite
        builder.add(step if isinstance(step, int) else number, entry, null_is_nan="loss" in entry)
    done, planned = state.get("global_step"), state.get("max_steps")
    if isinstance(planned, int) and planned > 0:
        builder.history.settings["max_steps"] = planned
        builder.history.finished = isinstance(done, int) and done >= planned
    if (path.parent / "adapter_config.json").is_file():
        builder.history.settings["adapter"] = True
    return builder.build()
