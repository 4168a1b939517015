"""Let the constructors of settings take older names, and refuse unknown ones with what was probably meant."""

from __future__ import annotations

import functools
import logging
import os
from dataclasses import fields
from typing import Any, TypeVar

from .catalogue import SETTINGS
from .meant import meant_by
from .spellings import OLDER, refuse_unknown, under_todays_names

logger = logging.getLogger(__name__)

Settings = TypeVar("Settings", bound=type)

_SETTINGS_OF: dict[str, set[str]] = {}  # name of a class of settings -> names of its settings


def with_older_names(settings: Settings) -> Settings:
    """Let the constructor of a dataclass of settings take older names, and refuse all unknown ones together.

    A setting that only got another name can be read under the older one, too.
    """
    plain, kind = settings.__init__, settings.__name__  # type: ignore[misc]
    known = _SETTINGS_OF[kind] = {field.name for field in fields(settings) if field.init}

    @functools.wraps(plain)
    def read(self: Any, *positional: Any, **given: Any) -> None:
        today = under_todays_names(given, known)
        hints = {name: _hint_in_python(name, kind) for name in today.settings if name not in known}
        refuse_unknown(f"{kind} setting", hints, "docs/from-trl.md lists all settings")
        plain(self, *positional, **today.settings)
        if getattr(self, "process_index", int(os.environ.get("RANK", "0"))) == 0:
            for line in today.lines:
                logger.warning(line)

    def read_older(self: Any, name: str) -> Any:
        older = OLDER.get(name)
        if older is None or older.convert or not older.new or older.new[0] not in known:
            raise AttributeError(f"{kind!r} object has no attribute {name!r}", name=name, obj=self)
        return getattr(self, older.new[0])

    settings.__init__, settings.__getattr__ = read, read_older  # type: ignore[misc, attr-defined]
    return settings


def _hint_in_python(name: str, kind: str) -> str | None:
    """Word what was probably meant by a name that a class of settings lacks."""
    found = (
        {OLDER[name].new[0]: ...} if name in OLDER else {name: ...} if name in SETTINGS else meant_by(name, SETTINGS)
    )
    if not found:
        return None
    meant, value = next(iter(found.items()))
    # What imports torch is perhaps not there yet.
    owner = next((owner for owner, names in _SETTINGS_OF.items() if meant in names), "ORPOConfig")
    if meant in _SETTINGS_OF[kind]:
        return f"did you mean {meant if value is ... else f'{meant}={value!r}'}?"
    return f"{meant} is a setting of {owner}"
