"""Where things are kept that can be made again: converted models, tokenized rows."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$ODDSMITH_CACHE``, else ``$XDG_CACHE_HOME/oddsmith``, else ``~/.cache/oddsmith``. It may not exist yet."""
    if chosen := os.environ.get("ODDSMITH_CACHE"):
        return Path(chosen).expanduser()
    user_cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(user_cache) if user_cache else Path.home() / ".cache") / "oddsmith"
