"""Check the names of folders to write: other programs must not take one for a flag or the end of a line."""

from __future__ import annotations

from pathlib import Path

from ..errors import ConfigError

MAX_NAME_BYTES = 240  # 255 on most file systems; a file that is being written has a suffix
MAX_PATH_BYTES = 3800  # 4096 on Linux, less the names of the files in the folder


def require_folder_name(path: str | Path, setting: str) -> None:
    """Raise a ``ConfigError`` for a path with a name that is invisible, too long, or looks like a flag.

    Names of folders that exist already are not checked. ``setting`` is that of the path, for the message.
    """
    text = str(path)
    if not text.strip():
        raise ConfigError(f"{setting} is empty; expected the name of a folder")
    odd = [char for char in text if not char.isprintable()]
    if odd:
        raise ConfigError(f"{setting} holds {odd[0]!r}, an invisible character; remove it")
    if len(text.encode(errors="replace")) > MAX_PATH_BYTES:
        raise ConfigError(f"{setting} is longer than {MAX_PATH_BYTES:,} bytes; choose a shorter path")
    full = Path(text).expanduser()
    for place in (full, *full.parents):
        name = place.name
        wrong = None if len(name.encode()) <= MAX_NAME_BYTES and place.exists() else _wrong_with(name)
        if wrong:
            raise ConfigError(f"{setting} {text!r}: the name {name!r} {wrong}; choose another")


def _wrong_with(name: str) -> str | None:
    if name.startswith("-"):
        return "begins with a dash, so that other programs take it for a flag"
    if name != name.strip():
        return "begins or ends with a space"
    if len(name.encode()) > MAX_NAME_BYTES:
        return f"is longer than {MAX_NAME_BYTES} bytes"
    return None
