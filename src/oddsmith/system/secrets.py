"""Secrets in what is said and written: tokens, passwords, keys are shown as ``***``.

Settings whose name says that they are secret are left out where settings are written (``without_secrets``). Texts that
quote something (errors, tracebacks, names of datasets) are searched for what can be told from its look (``masked``).
"""

from __future__ import annotations

import os
import re
from typing import Any

MASK = "***"
SECRET_NAME = re.compile(
    r"(^|[_-])(token|secret|password|passwd|api_?key|access_key|authorization|credentials?)$", re.IGNORECASE
)
# One slash is left where a URL was taken for a path.
IN_A_URL = re.compile(r"(\b[a-z][a-z0-9+.-]*:/{1,2})[^/\s'\"@]+@", re.IGNORECASE)
OF_THE_HUB = re.compile(r"\bhf_[A-Za-z0-9]{16,}")
IN_JSON = re.compile(
    r"""(["'][\w-]*(?:token|secret|password|passwd|api_?key|authorization)\\?["']\s*:\s*\\?["'])[^"'\\]+""",
    re.IGNORECASE,
)
LEAST_CHARACTERS = 8  # of a secret in the environment; a shorter one would hide common words


def masked(text: str) -> str:
    """A text without the secrets that it quotes.

    Args:
        text: Any text.

    Returns:
        The same with ``***`` for tokens of the hub, user and password of a URL, what JSON in it calls a token, a
        password or a key, and the values of this process's environment variables that bear such a name.
    """
    for name, value in os.environ.items():
        if len(value) >= LEAST_CHARACTERS and SECRET_NAME.search(name):
            text = text.replace(value, MASK)
    text = IN_A_URL.sub(rf"\g<1>{MASK}@", text)
    return IN_JSON.sub(rf"\g<1>{MASK}", OF_THE_HUB.sub(MASK, text))


def without_secrets(name: str, value: Any) -> tuple[Any, bool]:
    """A setting as it may be written down.

    Args:
        name: Its name.
        value: Its value, possibly with others inside.

    Returns:
        The value with null for each secret in it and ``***`` within texts, and whether there was one.
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
