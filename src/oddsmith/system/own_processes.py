"""How a process that we start finds its modules: nowhere in the folder in which it is started."""

from __future__ import annotations

import sys


def run_module(module: str) -> list[str]:
    """Return the command that runs a module of ours in another process of this Python.

    ``python -m`` puts the working folder first on the path, so that a ``torch.py`` or ``yaml.py`` in a folder of
    somebody's data would be run; ``-P`` leaves it out. Processes of ``multiprocessing`` inherit the flag.
    """
    return [sys.executable, "-P", "-m", module]
