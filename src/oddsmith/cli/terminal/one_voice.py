"""Say an error that all processes of a run share once: by the first process; the others say only what it does not.

They meet at the store of their launcher (torchrun, ``accelerate launch``), which is there before they train together
and after one of them has ended, or at that of their process group. Where there is neither, each says its error.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any

from ...system.launchers import store_of_run

WAIT_S = 4.0  # for the first process to come to the same error, or for the others to have seen its own
POLL_S = 0.05


def is_left_to_first(text: str) -> bool:
    """Return whether the first process of the run says this error, too; always false in the first process itself."""
    store = None if os.environ.get("RANK", "0") == "0" else _store()
    if store is None:
        return False
    try:
        store.wait([_key(text)], timedelta(seconds=WAIT_S))
        store.add(f"{_key(text)}/seen", 1)
    except RuntimeError:  # it says something else, or nothing
        return False
    return True


def tell_others(text: str) -> None:
    """Tell the other processes, in the first one, that it has said an error."""
    store = _store() if os.environ.get("RANK") == "0" else None
    if store is None:
        return
    with suppress(RuntimeError):
        from torch import distributed

        store.set(_key(text), "said")
        if _is_of_launcher():
            return
        others = distributed.get_world_size() - 1
        ends_at = time.monotonic() + WAIT_S
        # The store ends with this process.
        while time.monotonic() < ends_at and store.add(f"{_key(text)}/seen", 0) < others:
            time.sleep(POLL_S)


def _key(text: str) -> str:
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return f"oddsmith/said/{attempt}/{hashlib.sha256(text.encode(errors='replace')).hexdigest()}"


def _is_of_launcher() -> bool:
    """Return whether torchrun's own store is where the processes meet; after ``leave_agent_store`` it is not."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _store() -> Any:
    """Return a connection to the store at which the processes meet; ``None`` without one."""
    if not _is_of_launcher() and "torch" not in sys.modules:
        return None
    from torch import distributed

    try:
        if _is_of_launcher():
            address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            return distributed.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=WAIT_S))
        if distributed.is_initialized():
            return store_of_run()
    except (KeyError, ValueError, RuntimeError):  # the launcher has ended
        pass
    return None
