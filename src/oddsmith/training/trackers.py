"""Let a run go on without a tracker, or another callback that only looks on, when that fails.

A network may be down for an hour, a disk for TensorBoard's files full, a service switched off; a run of days must not
end by it. Callbacks that a user wrote may raise whatever they like.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.integrations import INTEGRATION_TO_CALLBACK, get_reporting_integration_callbacks

from ..errors import ConfigError, in_a_line

logger = logging.getLogger(__name__)

ONLOOKERS = (*INTEGRATION_TO_CALLBACK.values(), PrinterCallback, ProgressCallback)
EVENTS = tuple(name for name in vars(TrainerCallback) if name.startswith("on_"))


def make_trackers(report_to: Any) -> list[TrainerCallback]:
    """Return the callbacks of ``report_to``: before a model is loaded, as their packages are imported now.

    Raise ``ConfigError`` for a package that is installed, but does not work.
    """
    names = {callback: name for name, callback in INTEGRATION_TO_CALLBACK.items()}
    made = []
    for tracker in get_reporting_integration_callbacks(report_to):
        try:
            made.append(tracker())
        except Exception as error:  # a package may raise anything where it is broken
            raise ConfigError(
                f"report_to is {names[tracker]}, which does not work here ({in_a_line(error)});"
                " mend its package, or leave it out"
            ) from error
    return made


@contextmanager
def trackers_are_made(args: Any) -> Iterator[None]:
    """Let transformers make no second ones in the block."""
    report_to, args.report_to = args.report_to, []
    try:
        yield
    finally:
        args.report_to = report_to


def spare_run(callbacks: Iterable[Any]) -> None:
    """Let the events of callbacks that only look on raise nothing: one that fails gets no more of them.

    They are transformers' own, and those of ours with the attribute ``only_looks_on``.
    """
    for callback in callbacks:
        looks_on = isinstance(callback, ONLOOKERS) or getattr(callback, "only_looks_on", False)
        if looks_on and EVENTS[0] not in vars(callback):
            fate = _Fate()
            for event in EVENTS:
                setattr(callback, event, partial(fate.call, getattr(callback, event), type(callback).__name__))


class _Fate:
    """Whether a callback is dropped, as what it is called through. It stays in its list, which may be in a loop."""

    is_dropped = False

    def call(self, method: Callable[..., Any], name: str, *arguments: Any, **named: Any) -> Any:
        """Call a method of the callback, unless it is dropped."""
        if self.is_dropped:
            return None
        try:
            return method(*arguments, **named)
        except Exception as error:  # noqa: BLE001  a tracker may raise anything
            self.is_dropped = True
            _warn(name, error)
            return None


@contextmanager
def tracker_may_fail(name: str) -> Iterator[None]:
    """Warn in one line where the block fails."""
    try:
        yield
    except Exception as error:  # noqa: BLE001
        _warn(name, error)


def _warn(name: str, error: Exception) -> None:
    logger.warning("%s failed and is left out; the run goes on (%s)", name, in_a_line(error))
