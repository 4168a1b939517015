"""Convert values to strict JSON, and read JSON from untrusted sources."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from enum import Enum
from typing import Any

LARGEST = 1e15  # of a figure that is shown or drawn
MAX_DEPTH = 100  # of nested lists and objects; schemas of tools have about ten


def strict(value: Any) -> Any:
    """Return any value as strict JSON can represent it.

    NaN and infinity become ``None``, halves of surrogate pairs ``?``, and other objects text.
    """
    if isinstance(value, Mapping):
        return {_unicode(str(key)): strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(item) for item in value]
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, str):
        return _unicode(value)
    if isinstance(value, bool | int) or value is None:
        return value
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float | int):
        return value if math.isfinite(value) else None
    return _unicode(str(value))


def _unicode(text: str) -> str:
    return text if text.isascii() else text.encode(errors="replace").decode()


def read_json(text: str) -> Any:
    """Return the value of JSON from an untrusted source, with so little nesting that recursive code can process it.

    A ``JSONDecodeError`` refuses what is not JSON, is nested too deeply, or contains a number of thousands of digits.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise _too_deep(text) from None
    except json.JSONDecodeError:
        raise
    except ValueError:  # Python reads no number of more than 4,300 digits
        raise json.JSONDecodeError("a number of thousands of digits", text, 0) from None
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise _too_deep(text)
    return value


def read_object(text: str) -> dict[str, Any]:
    """Return the object of JSON from an untrusted source; another value and what ``read_json`` refuses are refused."""
    value = read_json(text)
    if not isinstance(value, dict):
        raise json.JSONDecodeError(f"expected an object, not {text.strip()[:20]!r}", text, 0)
    return value


def _too_deep(text: str) -> json.JSONDecodeError:
    return json.JSONDecodeError(f"nested more than {MAX_DEPTH} levels deep", text, 0)


def _depth(value: Any) -> int:
    """Return the depth of nested lists and objects."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return depth


def number(value: Any) -> int | float | None:
    """Return a figure of a JSON document if it is one that can be shown: a finite number, and not a huge one."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and abs(value) <= LARGEST else None
