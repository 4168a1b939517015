"""Names of folders that are written to: none that another program takes for a flag, a device or the end of a line."""

from __future__ import annotations

from pathlib import Path

from ..errors import ConfigError

# Names that Windows keeps for devices, with any suffix; a folder made elsewhere cannot be copied there.
RESERVED = frozenset(("con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))))
LONGEST_NAME_BYTES = 240  # 255 on most file systems, of which a file that is being written adds some
LONGEST_PATH_BYTES = 3800  # 4096 on Linux, of which the files in it need some


def require_folder_name(path: str | Path, setting: str) -> None:
    """Refuse a path that cannot be a folder everywhere, or that would be taken for something else.

    Folders that are there already may be called as they like.

    Args:
        path: As it was given.
        setting: What it is for, for the message.

    Raises:
        ConfigError: What is wrong with it, and what to do.
    """
    text = str(path)
    if not text.strip():
        raise ConfigError(f"{setting} is empty; expected the name of a folder")
    odd = [char for char in text if not char.isprintable()]
    if odd:
        raise ConfigError(f"{setting} holds {odd[0]!r}, a character that nobody sees; remove it")
    if len(text.encode(errors="replace")) > LONGEST_PATH_BYTES:
        raise ConfigError(f"{setting} is longer than {LONGEST_PATH_BYTES:,} bytes; choose a shorter path")
    whole = Path(text).expanduser()
    for place in (whole, *whole.parents):
        name = place.name
        wrong = None if len(name.encode()) <= LONGEST_NAME_BYTES and place.exists() else _wrong_with(name)
        if wrong:
            raise ConfigError(f"{setting} {text!r}: the name {name!r} {wrong}; choose another")


def _wrong_with(name: str) -> str | None:
    if name in ("", ".", ".."):
        return None
    if name.startswith("-"):
        return "begins with a dash, so that other programs take it for a flag"
    if name != name.rstrip(". ") or name != name.lstrip():
        return "begins or ends with a space, or ends with a dot, which some systems cut off"
    if name.partition(".")[0].lower() in RESERVED:
        return "is that of a device on Windows"
    if len(name.encode()) > LONGEST_NAME_BYTES:
        return f"is longer than {LONGEST_NAME_BYTES} bytes"
    return None
