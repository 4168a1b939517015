"""Values as strict JSON can hold them, and JSON that others wrote. Needs nothing heavy."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from enum import Enum
from typing import Any

MOST_DEPTH = 100  # of lists and objects in each other; schemas of tools have about ten


def strict(value: Any) -> Any:
    """The value without what strict JSON cannot hold.

    Args:
        value: Anything.

    Returns:
        The same with ``None`` for non-finite numbers, ``?`` for halves of surrogate pairs, and text for other objects.
    """
    if isinstance(value, Mapping):
        return {_whole_text(str(key)): strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(item) for item in value]
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, str):
        return _whole_text(value)
    if isinstance(value, bool | int) or value is None:
        return value
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float | int):
        return value if math.isfinite(value) else None
    return _whole_text(str(value))


def _whole_text(text: str) -> str:
    return text if text.isascii() else text.encode(errors="replace").decode()


def read_json(text: str) -> Any:
    """What a text in JSON says, where whoever wrote it may mean ill.

    Args:
        text: The text.

    Returns:
        The value, nested so little that code may walk over it.

    Raises:
        JSONDecodeError: It is no JSON, nested deeply, or holds a number of thousands of digits.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise _too_deep(text) from None
    except json.JSONDecodeError:
        raise
    except ValueError:  # Python reads no number of more than 4,300 digits
        raise json.JSONDecodeError("a number of thousands of digits", text, 0) from None
    if text.count("[") + text.count("{") > MOST_DEPTH and _depth(value) > MOST_DEPTH:
        raise _too_deep(text)
    return value


def _too_deep(text: str) -> json.JSONDecodeError:
    return json.JSONDecodeError(f"nested more than {MOST_DEPTH} levels deep", text, 0)


def _depth(value: Any) -> int:
    """How many lists and objects stand in each other."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return depth
