"""A program that was started ends with the one that started it, however that ends."""

from __future__ import annotations

import os
import signal
import threading
import time

LOOK_SECONDS = 1.0


def end_with_parent() -> None:
    """From now on, end this process as soon as its parent is gone: nobody is left to end it."""
    threading.Thread(target=_look, args=(os.getppid(),), daemon=True).start()


def _look(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
