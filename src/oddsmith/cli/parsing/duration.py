"""Times as people write them: ``3h50m``, ``90s``, and as batch systems do: ``1-02:00:00``, ``30:00``."""

from __future__ import annotations

import re

from ...errors import ConfigError

_UNITS = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?", re.IGNORECASE)
_DAYS_AND_CLOCK = re.compile(r"(\d+)-(\d+)(?::(\d+))?(?::(\d+))?")  # Slurm's days-hours[:minutes[:seconds]]
_CLOCK = re.compile(r"(?:(\d+):)?(\d+):(\d+)")  # [hours:]minutes:seconds
_SECONDS = (86400, 3600, 60, 1)


def seconds_of(text: str, where: str) -> float:
    """A time in seconds.

    Args:
        text: ``3h50m``, ``1d``, ``45m``, ``90s``, ``90`` (seconds), ``30:00``, ``3:50:00`` or ``1-02:00:00``.
        where: The flag, for the message.

    Returns:
        The seconds, more than 0.

    Raises:
        ConfigError: It is no such time.
    """
    stripped = text.strip()
    clock = _CLOCK.fullmatch(stripped)
    found = ("0", *clock.groups()) if clock else ()
    if not found:
        match = _DAYS_AND_CLOCK.fullmatch(stripped) or _UNITS.fullmatch(stripped)
        found = match.groups() if match and len(stripped) < 100 else ()
    seconds = sum(float(number or 0) * unit for number, unit in zip(found, _SECONDS, strict=False))
    if seconds <= 0:
        raise ConfigError(f"{where} is {text[:40]!r}; expected a time such as 3h50m, 45m, 90s, 3:50:00 or 1-02:00:00")
    return seconds
