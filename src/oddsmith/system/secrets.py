"""Keep tokens, passwords and keys out of messages and files.

``without_secrets`` removes settings with secret names before settings are written. ``masked`` replaces secrets of a
recognisable form by ``***`` in texts that quote something: errors, tracebacks, names of datasets.
"""

from __future__ import annotations

import os
import re
from typing import Any

MASK = "***"
SECRET_NAME = re.compile(
    r"(^|[_-])(token|secret|password|passwd|api_?key|access_key|authorization|credentials?)$", re.IGNORECASE
)
# One slash is left of a URL that was treated as a path.
IN_A_URL = re.compile(r"(\b[a-z][a-z0-9+.-]*:/{1,2})[^/\s'\"@]+@", re.IGNORECASE)
OF_THE_HUB = re.compile(r"\bhf_[A-Za-z0-9]{16,}")
IN_JSON = re.compile(
    r"""(["'][\w-]*(?:token|secret|password|passwd|api_?key|authorization)\\?["']\s*:\s*\\?["'])[^"'\\]+""",
    re.IGNORECASE,
)
MIN_CHARACTERS = 8  # of a secret in the environment; masking shorter ones would hide common words


def masked(text: str) -> str:
    """Return a text with ``***`` for the secrets in it.

    These are tokens of the hub, user and password of a URL, JSON fields named token, password or key, and the values of
    environment variables with such a name.
    """
    for name, value in os.environ.items():
        if len(value) >= MIN_CHARACTERS and SECRET_NAME.search(name):
            text = text.replace(value, MASK)
    text = IN_A_URL.sub(rf"\g<1>{MASK}@", text)
    return IN_JSON.sub(rf"\g<1>{MASK}", OF_THE_HUB.sub(MASK, text))


def without_secrets(name: str, value: Any) -> tuple[Any, bool]:
    """Return a setting's value with ``None`` for each secret in it and ``***`` in texts, and whether it had any.

    The value may be nested.
    """
    if value is not None and SECRET_NAME.search(name):
        return None, True
    if isinstance(value, dict):
        parts = {key: without_secrets(str(key), item) for key, item in value.items()}
        return {key: item for key, (item, _) in parts.items()}, any(hidden for _, hidden in parts.values())
    if isinstance(value, list):
        items = [without_secrets("", item) for item in value]
        return [item for item, _ in items], any(hidden for _, hidden in items)
    if isinstance(value, str):
        return masked(value), masked(value) != value
    return value, False
