"""A program that was started ends with the one that started it, however that ends."""

from __future__ import annotations

import os
import signal
import threading
import time

LOOK_SECONDS = 1.0


def end_with_parent(parent: int | None = None) -> None:
    """From now on, ask this process to end (SIGTERM) as soon as its parent is gone: nobody else is left to do so.

    Args:
        parent: Process id of the parent, which may be gone already; by default whoever is the parent now.
    """
    threading.Thread(target=_look, args=(os.getppid() if parent is None else parent,), daemon=True).start()


def _look(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
