"""Read one value: of a setting, from the words of a flag or from YAML; a number or a duration of a command's own flag.

Nothing is converted by guessing: a number for a text, a fraction for a whole number, NaN, or a text that is not one of
the choices is an error that says where the value is, what was found and what was expected.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from ...errors import ConfigError
from ...system.dtypes import OLD_KEY, dtype_name
from ...system.strict_json import read_json
from .schema import Field, flag_of

TRUE_WORDS = frozenset({"true", "yes", "on", "1"})
FALSE_WORDS = frozenset({"false", "no", "off", "0"})
NULL_WORDS = frozenset({"none", "null"})

_EXPECTED = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "list": "a list of texts",
    "dict": "a mapping",
    "list[dict]": "a list of mappings",
}
MAX_INTEGER = 10**18  # whole numbers of a configuration file are below it; no setting needs more
MAX_CHOICES_NAMED = 12
_PLAIN_WORD = re.compile(r"[\w.\-]+")

_UNITS = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?", re.IGNORECASE)
_DAYS_AND_CLOCK = re.compile(r"(\d+)-(\d+)(?::(\d+))?(?::(\d+))?")  # Slurm's days-hours[:minutes[:seconds]]
_CLOCK = re.compile(r"(?:(\d+):)?(\d+):(\d+)")  # [hours:]minutes:seconds
_SECONDS = (86400, 3600, 60, 1)


def from_flag(field: Field, texts: list[str], where: str) -> Any:
    """Read the value of a setting from the words after its flag: none for a switch, several for a list.

    ``where`` is the flag as it was typed, for the message.
    """
    if not texts:
        return True
    if len(texts) == 1:
        return check(field, _parse(field, texts[0]), where, typed=texts[0])
    return check(field, [part for text in texts for part in _split(text)], where)


def check(field: Field, value: Any, where: str, typed: str | None = None) -> Any:
    """Check that a setting takes a value, and return what to set; a single text for a list becomes a list of one.

    ``where`` is the file and line, or the flag, for the message; ``typed`` is the text that the value was read from.
    """
    accepted, result = _accept(field, value)
    if field.name in ("dtype", OLD_KEY):
        result = dtype_name(result)
    if accepted and not (field.choices and isinstance(result, str) and result not in field.choices):
        return result
    found = repr(typed) if typed is not None else _found(value)
    wanted = expected(field, near=value if isinstance(value, str) else "")
    if where.startswith("--"):
        as_json = " as JSON" if typed is not None and field.types in (("dict",), ("list[dict]",)) else ""
        raise ConfigError(f"{where} is {found}; expected {wanted}{as_json}")
    raise ConfigError(f"{where}: {field.name} is {found}; expected {wanted}")


def expected(field: Field, near: str = "") -> str:
    """Describe the values that a setting takes; of many choices, only those that are similar to ``near``."""
    if field.choices:
        words = [repr(choice) for choice in field.choices]
        if len(words) > MAX_CHOICES_NAMED:
            alike = difflib.get_close_matches(near, field.choices, n=3, cutoff=0.5) or field.choices[:3]
            words = [*map(repr, alike), f"another of {len(words)} (`oddsmith train --help-all` names all)"]
        text = " or ".join(words) if len(words) < 3 else "one of " + ", ".join(words)
        return text + (", or true or false" if "bool" in field.types else "")
    return " or ".join(_EXPECTED[kind] for kind in field.types)


def _parse(field: Field, text: str) -> Any:
    """Read a text as the first of the setting's types that it fits; return the text itself if it fits none."""
    lowered = text.lower()
    if field.nullable and lowered in NULL_WORDS and text not in field.choices:
        return None
    if "bool" in field.types and text not in field.choices and lowered in TRUE_WORDS | FALSE_WORDS:
        return lowered in TRUE_WORDS
    for kinds, convert in (({"int", "float"}, int), ({"float"}, float)):
        if kinds & set(field.types):
            try:
                return convert(text)
            except ValueError:
                continue
    if text.lstrip().startswith(("{", "[")) and {"dict", "list", "list[dict]"} & set(field.types):
        try:
            return read_json(text)
        except json.JSONDecodeError:
            return text  # a pattern such as [qv]_proj; where no text is taken, `check` refuses it
    if "list" in field.types and len(_split(text)) > 1:
        return _split(text)
    return text


def _split(text: str) -> list[str]:
    """Split ``a,b`` into its parts; leave anything that looks like a pattern as it is."""
    parts = [part.strip() for part in text.split(",")]
    return parts if all(_PLAIN_WORD.fullmatch(part) for part in parts) else [text]


def _accept(field: Field, value: Any) -> tuple[bool, Any]:
    """Return whether a setting takes a value, and the value to set."""
    if value is None:
        return field.nullable, None
    if isinstance(value, bool):
        return "bool" in field.types, value
    if isinstance(value, int | float):
        return _accept_number(field, value)
    if isinstance(value, str):
        return _accept_text(field, value)
    if isinstance(value, dict):
        return "dict" in field.types, value
    if isinstance(value, list):
        of_texts = "list" in field.types and all(isinstance(item, str) for item in value)
        of_mappings = "list[dict]" in field.types and all(isinstance(item, dict) for item in value)
        return of_texts or of_mappings, value
    return False, value


def _accept_number(field: Field, value: int | float) -> tuple[bool, int | float]:
    if isinstance(value, int) and abs(value) < MAX_INTEGER:
        return bool({"int", "float"} & set(field.types)), value
    try:
        return "float" in field.types and not math.isnan(value), float(value)
    except OverflowError:
        return False, value


def _accept_text(field: Field, text: str) -> tuple[bool, Any]:
    if "str" in field.types:
        return True, text
    if "bool" in field.types and text.lower() in TRUE_WORDS | FALSE_WORDS:  # YAML's yes, no, on, off
        return True, text.lower() in TRUE_WORDS
    return "list" in field.types, [text]


def _found(value: Any) -> str:
    """Describe a value for a message, with its kind where the kind may be wrong."""
    if value is None:
        return "empty (null)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list" if len(str(value)) > 60 else f"the list {value}"
    if isinstance(value, str):
        return f"the text {value if len(value) <= 60 else value[:57] + '...'!r}"
    return str(value)


def number(text: str, where: str, kind: type[int] | type[float]) -> int | float:
    """Read a number that was typed; ``where`` is the flag or command, for the message."""
    try:
        return kind(text)
    except ValueError:
        raise ConfigError(f"{where} is {text!r}; expected a {'whole ' if kind is int else ''}number") from None


def whole_number(given: Mapping[str, str], name: str, default: int, minimum: int | None = None) -> int:
    """Read the whole number after a command's own flag, and refuse one below ``minimum``."""
    value = int(number(given[name], flag_of(name), int)) if name in given else default
    if minimum is not None and value < minimum:
        raise ConfigError(f"{flag_of(name)} is {value}; expected {minimum} or more")
    return value


def seconds_of(text: str, where: str) -> float:
    """Read a duration: ``3h50m``, ``1d``, ``45m``, ``90s``, ``90`` (seconds), ``30:00``, ``3:50:00`` or ``1-02:00:00``.

    ``where`` is the flag, for the message.
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
