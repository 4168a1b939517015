"""Make a checkpoint complete beside the training: the part of a save that no step has to wait for.

    write     in the steps' time: every process writes its files, from where they are still in the system's memory
    finish    here: they are flushed to the disk and hashed, the manifest is written, older checkpoints are removed
    settle    between two steps, in all processes together (``checkpointing.py``): was it finished everywhere?

Writing is not done here, too: the weights change with the next step, so they would have to be copied first, and writing
is a copy already, into the memory of the system.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from transformers import TrainerCallback


class PendingSave:
    """A checkpoint whose files are written and whose manifest is not.

    Args:
        folder: The checkpoint.
        finish: Makes it complete; in the processes that do not write, nothing.
        is_beside: Whether in a thread; else it is finished when this returns.
    """

    def __init__(self, folder: Path, finish: Callable[[], None], *, is_beside: bool):
        self.folder = folder
        self.seconds = 0.0  # that finishing it took
        self._finish = finish
        self._error: BaseException | None = None
        # A daemon, because whoever ends the process at once does not wait; it leaves an unfinished save then.
        self._thread = threading.Thread(target=self._run, name="finish-checkpoint", daemon=True)
        if not (is_beside and self._is_started()):
            self._run()

    @property
    def is_done(self) -> bool:
        """Whether waiting for it takes no time."""
        return not self._thread.is_alive()

    def wait_for_end(self) -> None:
        """Wait until nothing is done for it any more."""
        if self._thread.ident is not None:
            self._thread.join()

    def wait(self) -> None:
        """Wait until it is complete; raise what kept it from that."""
        self.wait_for_end()
        if self._error is not None:
            raise self._error

    def _is_started(self) -> bool:
        try:
            self._thread.start()
        except RuntimeError:  # no more threads (ulimit -u): other processes would wait for this one
            return False
        return True

    def _run(self) -> None:
        started_at = time.perf_counter()
        try:
            self._finish()
        except Exception as error:  # noqa: BLE001 - whatever it is, the training hears of it in ``wait``
            self._error = error
        self.seconds = time.perf_counter() - started_at


def reader_of_saves(callbacks: Iterable[TrainerCallback]) -> str | None:
    """Return the name of a user's callback that acts when a checkpoint is saved, and may copy it, if there is one.

    transformers' own trackers are left out: nearly all of them have such a method, and nearly none uses it.
    """
    known = (__name__.partition(".")[0], "transformers")
    for callback in callbacks:
        owner = next((kind for kind in type(callback).__mro__ if "on_save" in vars(kind)), type(callback))
        own = vars(callback).get("on_save", owner)  # put in its place: by a user, or by ``trackers.py``
        for method in (getattr(own, "func", own), owner):
            if str(getattr(method, "__module__", None)).partition(".")[0] not in known:
                return type(callback).__name__
    return None
