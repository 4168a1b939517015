"""Values as strict JSON can hold them, for the diary of a run and for what the command prints. Needs nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum
from typing import Any


def strict(value: Any) -> Any:
    """The value without what strict JSON cannot hold: non-finite numbers become ``None``, other objects text."""
    if isinstance(value, Mapping):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(item) for item in value]
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, bool | int | str) or value is None:
        return value
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float | int):
        return value if math.isfinite(value) else None
    return str(value)
