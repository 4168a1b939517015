"""Read values that a file holds as text: messages, tools and arguments, as JSON or as Python prints them.

A table has no place for lists, so tools write them as text:

    [{"role": "user", "content": "Hi"}]             JSON, in one column or all; written twice: "[{\\"role\\": ...
    [{'role': 'user', 'content': 'Hi'}]             a list of Python, as pandas writes it into a CSV
    [{'role': 'user', ...}\\n {'role': ...}]         an array of numpy, without commas

Text counts as messages only where the whole of it is one message or a list of them, with roles that conversations have.
Any other JSON is an answer like another.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Mapping
from typing import Any

from ...errors import RowError
from ...system.strict_json import MAX_DEPTH, read_json

MAX_PYTHON_CHARACTERS = 2_000_000  # parsing takes about a hundred bytes a character
MAX_TIMES_WRITTEN = 3  # JSON of JSON of JSON
ROLE_KEYS = {"role": "content", "from": "value"}

# How messages begin, where the text cannot be parsed: the cell of a spreadsheet ends after 32,767 characters.
_OPENING = re.compile(
    r"""[\s"'\[(]*\{\s*\\*["'](?:role\\*["']\s*:\s*\\*["'](?:system|user|assistant|tool)|from\\*["']\s*:\s*\\*["'](?:human"""
    r"""|gpt|system)|(?:content|value)\\*["']\s*:\s*\\*["'].*["'](?:role|from)\\*["']\s*:)""",
    re.DOTALL,
)
# What numpy prints around and between items, outside of strings: no commas, array([...], dtype=object), nan.
_PRINTED = re.compile(
    r"""(?P<string>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|(?P<gap>\}\s+(?=\{))|\barray\((?=\[)|,\s*dtype=object\)"""
    r"""|(?P<nan>\bnan\b)""",
    re.DOTALL,
)


def read_text(text: str) -> Any:
    """Return the value that is written as JSON, or as Python prints it; a ``ValueError`` says why it is neither.

    The ``ValueError`` is that of JSON. Only plain values are read: objects with text keys, lists, text, numbers, true,
    false and null. Text that holds JSON again is read again.
    """
    value: Any = text
    for _ in range(MAX_TIMES_WRITTEN):
        try:
            value = read_json(value)
        except json.JSONDecodeError as error:
            try:
                value = _python_value(value)
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                raise error from None
        if not isinstance(value, str):
            break
    return value


def _python_value(text: str) -> Any:
    if len(text) > MAX_PYTHON_CHARACTERS:
        raise ValueError("too long")

    def with_commas(match: re.Match[str]) -> str:
        if match["string"]:
            return match["string"]
        return "}, " if match["gap"] else "None" if match["nan"] else ""

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of unknown escapes in strings
        return _plain(ast.literal_eval(_PRINTED.sub(with_commas, text.strip())), MAX_DEPTH)


def _plain(value: Any, depth: int) -> Any:
    """Return a Python literal with tuples as lists; a ``ValueError`` refuses what JSON has not."""
    if depth < 0:
        raise ValueError("nested too deeply")
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(item, depth - 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, depth - 1) for item in value]
    if value is None or isinstance(value, str | int | float):
        return value
    raise ValueError(f"a {type(value).__name__}")


def written_messages(text: str, where: str, roles: frozenset[str] | None) -> Any:
    """Return the messages that a text holds; None where it is ordinary text.

    Text that begins like messages and cannot be parsed, as if it was cut, is a ``RowError``. ``roles`` are those that a
    message may have, under any name and in lower case; None: any that is text.
    """
    names_keys = any(key in text and content in text for key, content in ROLE_KEYS.items())
    if not names_keys or not text.lstrip().startswith(("[", "{", "(", '"', "'", "array(")):
        return None
    try:
        value = read_text(text)
    except ValueError as error:
        if _OPENING.match(text):
            raise RowError(
                "malformed message",
                f"{where} begins like messages written as text, but is neither JSON ({error}) nor Python;"
                ' give messages as a list, or text that is meant literally as {"role": ..., "content": TEXT}',
            ) from None
        return None
    messages = value if isinstance(value, list) else [value]
    return value if messages and all(_is_message(message, roles) for message in messages) else None


def _is_message(value: Any, roles: frozenset[str] | None) -> bool:
    if not isinstance(value, Mapping):
        return False
    key = next((key for key in ROLE_KEYS if isinstance(value.get(key), str)), None)
    if key is None:
        return False
    if roles is None:
        return isinstance(value.get(ROLE_KEYS[key]), str | list)
    return value[key].lower() in roles and (ROLE_KEYS[key] in value or "tool_calls" in value)
