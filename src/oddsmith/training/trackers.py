"""Let a run go on without a tracker, or another callback that only looks on, when that fails.

A network may be down for an hour, a disk for TensorBoard's files full, a service switched off; a run of days must not
end by it. Callbacks that a user wrote may raise whatever they like.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import Any

from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.integrations import INTEGRATION_TO_CALLBACK

from ..errors import showable

logger = logging.getLogger(__name__)

ONLOOKERS = (*INTEGRATION_TO_CALLBACK.values(), PrinterCallback, ProgressCallback)
EVENTS = tuple(name for name in vars(TrainerCallback) if name.startswith("on_"))


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


def warn_of_failures(uploads: Iterable[Future[Any]]) -> None:
    """Warn, when an upload of a checkpoint ends, that it has failed; the next checkpoint is uploaded all the same."""
    for upload in uploads:
        upload.add_done_callback(_warn_of_upload)


def _warn_of_upload(upload: Future[Any]) -> None:
    error = None if upload.cancelled() else upload.exception()
    if error is not None:
        what = showable(str(error).strip().partition("\n")[0])
        logger.warning("a checkpoint was not uploaded; the run goes on (%s: %s)", type(error).__name__, what)


def _warn(name: str, error: Exception) -> None:
    what = showable(str(error).strip().partition("\n")[0])
    logger.warning("%s failed and is left out; the run goes on (%s: %s)", name, type(error).__name__, what)
