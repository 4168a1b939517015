"""One value of one setting: read from the texts of a flag, or checked as YAML gave it.

No conversion guesses. A number for a text, a fraction for a whole number, NaN, or a text outside the choices is an
error that says where the value stands, what was found and what was expected.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from typing import Any

from ...errors import ConfigError
from ...system.strict_json import read_json
from .schema import Field

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
MOST_WHOLE = 10**18  # what a configuration file takes for a whole number, and more than any setting means
MOST_NAMED = 12  # choices that a message names
_PLAIN_WORD = re.compile(r"[\w.\-]+")


def from_flag(field: Field, texts: list[str], where: str) -> Any:
    """The value that the texts after a flag spell.

    Args:
        field: The setting.
        texts: What follows the flag: nothing for a switch, several texts for a list.
        where: The flag as it was typed, for the message.

    Returns:
        A value of one of the types of ``field``.

    Raises:
        ConfigError: The texts spell no such value.
    """
    if not texts:
        return True
    if len(texts) == 1:
        parsed = _parse(field, texts[0])
        return check(field, parsed, where, typed=texts[0])
    return check(field, [part for text in texts for part in _split(text)], where)


def check(field: Field, value: Any, where: str, typed: str | None = None) -> Any:
    """The value itself if the setting takes it; a lone text for a list becomes a list of one.

    Args:
        field: The setting.
        value: What YAML or :func:`from_flag` made of it.
        where: File and line, or the flag, for the message.
        typed: The text it was read from, if it was a text.

    Returns:
        The value to set.

    Raises:
        ConfigError: The setting does not take it.
    """
    accepted, result = _accept(field, value)
    if accepted and not (field.choices and isinstance(result, str) and result not in field.choices):
        return result
    found = repr(typed) if typed is not None else _found(value)
    wanted = expected(field, near=value if isinstance(value, str) else "")
    if where.startswith("--"):
        as_json = " as JSON" if typed is not None and field.types in (("dict",), ("list[dict]",)) else ""
        raise ConfigError(f"{where} is {found}; expected {wanted}{as_json}")
    raise ConfigError(f"{where}: {field.name} is {found}; expected {wanted}")


def expected(field: Field, near: str = "") -> str:
    """What a setting takes, in words.

    Args:
        field: The setting.
        near: What was given; of many choices those like it are named.

    Returns:
        The words.
    """
    if field.choices:
        words = [repr(choice) for choice in field.choices]
        if len(words) > MOST_NAMED:
            alike = difflib.get_close_matches(near, field.choices, n=3, cutoff=0.5) or field.choices[:3]
            words = [*map(repr, alike), f"another of {len(words)} (`oddsmith train --help-all` names all)"]
        text = " or ".join(words) if len(words) < 3 else "one of " + ", ".join(words)
        return text + (", or true or false" if "bool" in field.types else "")
    return " or ".join(_EXPECTED[kind] for kind in field.types)


def _parse(field: Field, text: str) -> Any:
    """A text in the first of the types that can read it; the text itself where none can."""
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
    """``a,b`` as its parts; anything that looks like a pattern stays whole."""
    parts = [part.strip() for part in text.split(",")]
    return parts if all(_PLAIN_WORD.fullmatch(part) for part in parts) else [text]


def _accept(field: Field, value: Any) -> tuple[bool, Any]:
    """Whether a setting takes a value, and as what."""
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
    if isinstance(value, int) and abs(value) < MOST_WHOLE:
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
    """A value as a message shows it, with its kind where that is what is wrong."""
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
    """A number that was typed in.

    Args:
        text: As it was typed.
        where: Flag or command, for the message.
        kind: Which numbers are meant.

    Returns:
        The number.

    Raises:
        ConfigError: It is none.
    """
    try:
        return kind(text)
    except ValueError:
        raise ConfigError(f"{where} is {text!r}; expected a {'whole ' if kind is int else ''}number") from None
